"""SPAM: Adam that clips single entries of a gradient, and whose moments start anew now and then."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxstab.config import ConfigError, Range
from jaxstab.optimize.adam import B1, B2, Eps
from jaxstab.optimize.layers import TransformationFactory


def spam(
    threshold: Annotated[
        float, "θ: an entry whose square is above θ times its second moment is clipped to that.", Range(above=0)
    ] = 5000.0,
    interval: Annotated[int, "Updates from one restart of the moments to the next.", Range(1)] = 500,
    grace: Annotated[int, "Updates after a restart in which nothing is clipped: moments are filling.", Range(0)] = 20,
    rewarm: Annotated[int, "Updates after a restart over which the step grows back, as a cosine.", Range(0)] = 150,
    b1: B1 = 0.9,
    b2: B2 = 0.999,
    eps: Eps = 1e-8,
) -> TransformationFactory:
    """Spike-aware Adam with momentum reset: spikes are clipped entry by entry, and moments forget what is left of them.

    Bias correction counts from the first update, as the authors' code has it: after a restart nothing is corrected. An
    entry whose second moment is still zero (a token's that hasn't come up) isn't clipped, which would keep it at zero.

    Formula: g := sign(g) √(θ v) where g² > θ v; every `interval` updates m, v := 0, and for `rewarm` updates from there
      u := u (1 - 0.99 (1 + cos πx)/2), x = (k + 1)/(rewarm + 1) in the k-th, from 0
    Paper: Huang et al. 2025 (arXiv:2501.06842), Algorithm 1, without its sparse momentum
    Parameters: none; two values of state for each stored parameter
    Checked against: pytorch-optimizer's SPAM (tests/parity), and NumPy in float64
    Certainty: secondary: pytorch-optimizer's translation of the authors' code, whose re-warming takes 50 updates
    """
    if grace >= interval:
        raise ConfigError(
            f"optimizer.rule.spam.grace={grace} must be below its interval={interval}, or nothing is ever clipped"
        )
    adam = optax.scale_by_adam(b1, b2, eps)

    def init(params: Any) -> SpamState:
        return SpamState(*adam.init(params))

    def update(gradients: Any, state: SpamState, params: Any = None) -> tuple[Any, SpamState]:
        step = state.updates + 1
        since = step % interval
        first, second = (_unless(since == 0, moments) for moments in (state.first, state.second))

        def clipped(g: Array, v: Array) -> Array:
            limit = jnp.sqrt(threshold * v)
            return jnp.where((since >= grace) & (v > 0), jnp.clip(g, -limit, limit), g)

        clipped_gradients = jax.tree.map(clipped, gradients, second)
        updates, moved = adam.update(clipped_gradients, optax.ScaleByAdamState(state.updates, first, second), params)
        factor = jnp.where(step < interval, 1.0, _regrown(since, rewarm))
        return jax.tree.map(lambda u: u * factor, updates), SpamState(*moved)

    return lambda _: optax.GradientTransformation(init, update)


class SpamState(NamedTuple):
    """Adam's state. Its moments aren't named mu and nu: what restarts is no average that a run's account can check."""

    updates: Int[Array, ""]
    first: Any
    second: Any


def _unless(restarts: Array, moments: Any) -> Any:
    return jax.tree.map(lambda moment: jnp.where(restarts, 0.0, moment), moments)


def _regrown(since: Int[Array, ""], rewarm: int) -> Float[Array, ""]:
    """The share of its size that an update has, `since` updates after a restart."""
    wave = jnp.cos(jnp.pi * (since + 1) / (rewarm + 1))
    return jnp.where(since < rewarm, 1 - 0.99 * (1 + wave) / 2, 1.0)
