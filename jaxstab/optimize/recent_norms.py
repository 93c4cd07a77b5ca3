"""Clipping by the norms of the last steps, as levanter clips updates."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxstab.config import Range
from jaxstab.optimize.clipping import limiting_factor
from jaxstab.optimize.layers import TransformationFactory


class RecentNorms(NamedTuple):
    """The number of norms that were taken in, and the last of them, in a ring: float32 [window]."""

    known: Int[Array, ""]
    norms: Float[Array, " window"]


def recent_norms(
    sigmas: Annotated[
        float, "Standard deviations above the mean of recent norms at which one is clipped.", Range(above=0)
    ] = 2.0,
    window: Annotated[int, "Norms that are recent; before as many are known nothing is clipped.", Range(2)] = 128,
) -> TransformationFactory:
    """Scales the whole down to the mean of its last norms and some standard deviations, where its norm is larger.

    It is meant for updates (`optimizer.update_clip.method`), which moved before the loss did in Marin's spikes. Norms
    are taken in as they were before clipping; those that aren't finite are left out.

    Formula: u · min(1, (μ + sigmas s) / ||u||), μ and s of the last `window` norms
    Paper: none; levanter's clip_update_norm, with which Marin 32B was trained (marin-community/marin, #1368)
    Parameters: none; `window` + 1 values of state
    Checked against: NumPy in float64
    Certainty: secondary
    """

    def init(_: Any) -> RecentNorms:
        return RecentNorms(jnp.zeros((), jnp.int32), jnp.zeros(window, jnp.float32))

    def update(updates: Any, state: RecentNorms, _: Any = None) -> tuple[Any, RecentNorms]:
        norm = optax.tree.norm(updates).astype(jnp.float32)
        limit = jnp.mean(state.norms) + sigmas * jnp.std(state.norms)
        factor = limiting_factor(norm, jnp.where(state.known >= window, limit, jnp.inf))
        ring = RecentNorms(optax.safe_increment(state.known), state.norms.at[state.known % window].set(norm))
        next_state = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(norm), new, old), ring, state)
        return jax.tree.map(lambda u: u * factor, updates), next_state

    return lambda _: optax.GradientTransformation(init, update)
