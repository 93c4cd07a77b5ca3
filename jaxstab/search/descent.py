"""Adam on factors, as GradInit has it: with moments of their own for an objective and for a bound that is exceeded."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from jaxstab.search.base import LEAST, Factors

State = tuple[Any, Any]  # optax's states of Adam: of the objective, and of the bound


class Descent(NamedTuple):
    """Adam with b1 = 0.9, on slopes that are clipped one by one; no factor falls below LEAST.

    Attributes:
      learning_rate, b2: Adam's.
      clip: the largest slope by a factor; 0 is none.
    """

    learning_rate: float
    b2: float
    clip: float

    def start(self, factors: Factors) -> State:
        moments = optax.scale_by_adam(b2=self.b2).init(factors)
        return moments, moments

    def update(
        self, factors: Factors, slopes: Factors, state: State, exceeds: Bool[Array, ""] | bool
    ) -> tuple[Factors, State]:
        """The factors after one step down the slopes, which are those of the bound where it is exceeded."""
        if self.clip:
            slopes = jax.tree.map(lambda slope: jnp.clip(slope, -self.clip, self.clip), slopes)
        choose = functools.partial(jnp.where, exceeds)
        objective, bound = state
        steps, moments = optax.scale_by_adam(b2=self.b2).update(slopes, jax.tree.map(choose, bound, objective))
        state = jax.tree.map(choose, objective, moments), jax.tree.map(choose, moments, bound)
        return jax.tree.map(self._moved, factors, steps), state

    def _moved(self, factor: Array, step: Array) -> Array:
        return jnp.maximum(factor - self.learning_rate * step, LEAST)
