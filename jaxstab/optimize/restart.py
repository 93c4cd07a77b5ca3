"""The reset of momentum as an action of the guard: after a skip, first moments of what was hit start from zero.

SPAM drops its moments every so many steps, so that what a spike left in them is forgotten (Huang et al. 2025,
arXiv:2501.06842). Here the spike itself is skipped, and what is forgotten is the direction that led there. Second
moments stay: they have seen no spike, and from zero, with the bias correction of all updates, they would make the next
steps several times too long. A first moment grows back from zero over 1 / (1 - b1) steps, which are shorter for it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxstab.numerics import matrix_norm
from jaxstab.optimize.layers import is_masked, one_per_layer
from jaxstab.table import RawGradients, Row, Stored, Table

DECAY = 0.99  # of the running averages: about as many steps as the detectors' windows have
FIRST_MOMENTS = ("mu", "first")  # optax's name, and that of a rule whose moments are no plain averages


class GradientNorms(NamedTuple):
    """Running averages of every parameter's gradient norm, one a layer, in its axes; 0 before the first."""

    averages: Any


def gradient_norms(table: Table[Stored], above: float) -> optax.GradientTransformationExtraArgs:
    """Leaves updates as they are, and averages the norms of the extra argument `gradients`, those before clipping.

    A norm more than `above` times its average enters at that, so that a spike that is taken doesn't hide the next.
    """

    def init(_: Any) -> GradientNorms:
        return GradientNorms(jax.tree.map(lambda row: jnp.zeros(one_per_layer(row)), table))

    def update(
        updates: Any, state: GradientNorms, params: Any = None, *, gradients: RawGradients, **_: Any
    ) -> tuple[Any, GradientNorms]:
        def average(row: Row, usual: Array, g: Array) -> Array:
            norm = matrix_norm(row, g, keepdims=True)
            return jnp.where(usual > 0, DECAY * usual + (1 - DECAY) * jnp.minimum(norm, above * usual), norm)

        return updates, GradientNorms(jax.tree.map(average, table, state.averages, gradients))

    return optax.GradientTransformationExtraArgs(init, update)


def restarted(
    table: Table[Stored], above: float, state: Any, gradients: RawGradients, skipped: Bool[Array, ""]
) -> tuple[Any, Float[Array, ""]]:
    """The state of an optimizer whose last transformation is `gradient_norms`, without first moments of what was hit.

    Args:
      table: rows of what is stored.
      above: a layer of a parameter is hit where its gradient norm is above so many times its average, or isn't finite.
      state: of the optimizer.
      gradients: of a step that isn't taken, before clipping.
      skipped: whether anything restarts.

    Returns:
      The state, and how many layers of parameters were hit.
    """

    def is_hit(row: Row, usual: Array, g: Array) -> Bool[Array, "*L"]:
        norm = matrix_norm(row, g, keepdims=True)
        return skipped & (~jnp.isfinite(norm) | (usual > 0) & (norm > above * usual))

    hits = jax.tree.map(is_hit, table, state[-1].averages, gradients)

    count = sum(jnp.sum(hit) for hit in jax.tree.leaves(hits))
    restarted_state = jax.tree.map(functools.partial(_without, hits), state, is_leaf=lambda node: bool(_names(node)))
    return restarted_state, jnp.asarray(count, jnp.float32)


def _names(node: Any) -> list[str]:
    """The names of the first moments that a node of an optimizer's state has."""
    return [name for name in FIRST_MOMENTS if hasattr(node, name)]


def _without(hits: Any, node: Any) -> Any:
    """The node with zeros for first moments where there are hits."""

    def moment(m: Any, hit: Array) -> Any:
        return m if is_masked(m) else jnp.where(hit, 0.0, m)

    zeroed = {name: jax.tree.map(moment, getattr(node, name), hits, is_leaf=is_masked) for name in _names(node)}
    return node._replace(**zeroed) if zeroed else node
