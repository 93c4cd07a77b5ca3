"""Drawing effective weights from a table."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.initialize.scales import Scale
from jaxstab.table import Row, Table


def scaled(table: Table, scale: Scale, *, embedding: Callable[[float, int], float] = lambda std, width: 1.0) -> Table:
    """Fills in the standard deviations of a table's matrices.

    Args:
      table: rows of effective weights.
      scale: the initial scale.
      embedding: (std, width) -> constant multiplier of embed_tokens, `std` being what `scale` says: see
        `jaxstab.model.embeddings`.
    """

    def fill(row: Row) -> Row:
        if not row.is_matrix:
            return row
        std = scale(row)
        if row.role == "embed_tokens":
            multiplier = embedding(std, row.width)
            return row.replace(std=multiplier * std, multiplier=multiplier)
        return row.replace(std=std)

    return jax.tree.map(fill, table)


def draw(key: jax.Array, table: Table) -> Any:
    """Draws effective weights in float32: N(0, std²) for matrices, the row's value for everything else.

    A parameter's draw depends on the key and on its path alone, so that the same seed gives the same effective weights
    whatever is made of them, and on whatever mesh. A tied matrix is its source's transpose, rescaled to its own std.
    """
    rows = {row.path: row for row in jax.tree.leaves(table)}

    def normal(row: Row) -> jax.Array:
        noise = jax.random.normal(jax.random.fold_in(key, zlib.crc32(row.path.encode())), row.shape, jnp.float32)
        return noise * _column(row.std, row)

    def leaf(row: Row) -> jax.Array:
        if not row.is_matrix:
            return jnp.broadcast_to(_column(row.value, row), row.shape)
        if row.tied:
            source = rows[row.tied]
            return normal(source).T * (jnp.asarray(row.std) / jnp.asarray(source.std))
        return normal(row)

    return jax.tree.map(leaf, table)


def _column(value: Any, row: Row) -> jax.Array:
    """A scalar, or a vector over layers shaped to multiply a stacked parameter."""
    array = jnp.asarray(value, jnp.float32)
    return array.reshape(-1, *(1,) * (len(row.shape) - 1)) if array.ndim else array
