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

from jaxstab.config import Range

Shape = Callable[[ArrayLike], Float[Array, ""]]
Floor = Annotated[float, "Last value, as a fraction of the peak.", Range(0, 1)]


def cosine(floor: Floor = 0.1) -> Shape:
    """Cosine decay to the floor.

    Formula: floor + (1 - floor) (1 + cos(π x)) / 2, x the fraction of the decay that is done
    Paper: Loshchilov and Hutter 2017 (arXiv:1608.03983), equation 5, without restarts
    Checked against: torch.optim.lr_scheduler.CosineAnnealingLR
    """
    return optax.cosine_decay_schedule(1.0, 1, floor)


def linear(floor: Floor = 0.0) -> Shape:
    """Linear decay to the floor.

    Formula: 1 - (1 - floor) x, x the fraction of the decay that is done
    Paper: Bergsma et al. 2025 (arXiv:2502.15938), who compare it with the cosine
    Checked against: torch.optim.lr_scheduler.LinearLR
    """
    return optax.linear_schedule(1.0, floor, 1)


def constant() -> Shape:
    """No decay.

    Formula: 1
    Paper: none
    Checked against: torch.optim.lr_scheduler.ConstantLR
    """
    return optax.constant_schedule(1.0)


def warmup_stable_decay(
    decay: Annotated[
        float, "Fraction of the steps after warmup that the final decay takes.", Range(above=0, most=1)
    ] = 0.2,
    floor: Floor = 0.0,
) -> Shape:
    """Constant, then linear decay to the floor.

    Formula: min(1, 1 - (1 - floor) (x - (1 - decay)) / decay), x the fraction of the steps after warmup
    Paper: Hu et al. 2024 (arXiv:2404.06395); its linear form is that of Hägele et al. 2024 (arXiv:2405.18392)
    Checked against: torch.optim.lr_scheduler.SequentialLR of ConstantLR and LinearLR
    """
    return lambda fraction: linear(floor)((fraction - (1 - decay)) / decay)


def with_warmup(shape: Shape, warmup: int, steps: int) -> Callable[[jax.Array], Float[Array, ""]]:
    """Linear warmup over `warmup` updates, then `shape` over what remains of `steps`.

    Update 0 takes 1/warmup of the peak rather than none, and update `warmup - 1` the peak.
    """

    def schedule(count: jax.Array) -> Float[Array, ""]:
        rising = (count + 1) / max(1, warmup)
        return jnp.where(count < warmup, rising, shape((count - warmup) / max(1, steps - warmup)))

    return schedule
