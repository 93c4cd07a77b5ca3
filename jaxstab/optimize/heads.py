"""The blocks of attention heads as matrices of their own, for update rules of one matrix at a time."""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxstab.config import ConfigError
from jaxstab.optimize.layers import is_masked
from jaxstab.table import Row, Table, rows

PerHead = Annotated[
    bool,
    "Whether each head's block of q_proj, k_proj, v_proj and o_proj is orthogonalized, and scaled by its shape, apart "
    "from the others (Kimi Team 2026, arXiv:2607.24653, section 2.5, for q, k and v).",
]
HEADS = ("heads", "kv_heads")


def heads_apart(table: Table, rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """A rule of Muon's state, which is given the block of every head for a matrix.

    The momentum lies in the parameters' own shapes between updates, so that it is split over devices as they are.

    Raises:
      ConfigError: no matrix of the table has heads.
    """
    if not any(head_axis(row) for row in rows(table)):
        raise ConfigError("per_head=True needs a table that knows the heads of a matrix, by Row.head_dim; none has any")

    def apart(tree: Any) -> Any:
        return jax.tree.map(lambda x, row: x if is_masked(x) else split_heads(row, x), tree, table, is_leaf=is_masked)

    def together(tree: Any) -> Any:
        return jax.tree.map(lambda x, row: x if is_masked(x) else join_heads(row, x), tree, table, is_leaf=is_masked)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = rule.update(apart(updates), state._replace(mu=apart(state.mu)), params)
        return together(updates), state._replace(mu=together(state.mu))

    return optax.GradientTransformation(rule.init, update)


def head_axis(row: Row) -> int:
    """Which axis of a matrix counts the entries of all heads: -2 or -1; 0 where none does."""
    axes = [axis for axis in (-2, -1) if row.head_dim and len(row.axes) > 1 and row.axes[axis] in HEADS]
    return axes[0] if axes else 0


def head_row(row: Row) -> Row:
    """The row of one head's block, of a matrix that has heads; any other's own."""
    axis, shape = head_axis(row), list(row.shape)
    if axis:
        shape[axis] = row.head_dim
    return row.replace(shape=tuple(shape))


def split_heads(row: Row, x: Float[Array, "*L I O"]) -> Float[Array, "*LH i o"]:
    """The blocks of heads along an axis before those of the matrix, [L, H, I, K] or [L, H, K, O]; others unchanged."""
    axis = head_axis(row)
    if axis == -2:
        return x.reshape(*x.shape[:-2], -1, row.head_dim, x.shape[-1])
    return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, row.head_dim), -2, -3) if axis else x


def join_heads(row: Row, x: Float[Array, "*LH i o"]) -> Float[Array, "*L I O"]:
    """The inverse of `split_heads`."""
    axis = head_axis(row)
    if axis == -2:
        return x.reshape(*x.shape[:-3], -1, x.shape[-1])
    return jnp.moveaxis(x, -3, -2).reshape(*x.shape[:-3], x.shape[-2], -1) if axis else x
