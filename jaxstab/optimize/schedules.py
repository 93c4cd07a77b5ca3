"""Learning-rate schedules as shapes with peak 1, so that the peak itself can be a traced value.

A shape is a function of the fraction of the decay that is done, from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from jaxstab.config import ConfigError

Shape = Callable[[ArrayLike], Float[Array, ""]]
Floor = Annotated[float, "Last value, as a fraction of the peak."]


def cosine(floor: Floor = 0.1) -> Shape:
    """Cosine decay to the floor."""
    return optax.cosine_decay_schedule(1.0, 1, floor)


def linear(floor: Floor = 0.0) -> Shape:
    """Linear decay to the floor."""
    return optax.linear_schedule(1.0, floor, 1)


def constant() -> Shape:
    """No decay."""
    return optax.constant_schedule(1.0)


def warmup_stable_decay(
    decay: Annotated[float, "Fraction of the steps after warmup that the final decay takes."] = 0.2, floor: Floor = 0.0
) -> Shape:
    """Constant, then linear decay to the floor (Hu et al. 2024)."""
    if not 0 < decay <= 1:
        raise ConfigError(f"optimizer.schedule.warmup_stable_decay.decay={decay} must be above 0 and at most 1")
    return lambda fraction: linear(floor)((fraction - (1 - decay)) / decay)


def with_warmup(shape: Shape, warmup: int, steps: int) -> Callable[[jax.Array], Float[Array, ""]]:
    """Linear warmup over `warmup` updates, then `shape` over what remains of `steps`.

    Update 0 takes 1/warmup of the peak rather than none, and update `warmup - 1` the peak.
    """

    def schedule(count: jax.Array) -> Float[Array, ""]:
        rising = (count + 1) / max(1, warmup)
        return jnp.where(count < warmup, rising, shape((count - warmup) / max(1, steps - warmup)))

    return schedule
