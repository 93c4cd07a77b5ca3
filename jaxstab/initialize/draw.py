"""Drawing effective weights from a table."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.config import UserError
from jaxstab.initialize.scales import Scale
from jaxstab.initialize.transfer import Transfer
from jaxstab.table import Effective, Row, Table, Weights, divided, rows


def scaled(
    table: Table[Effective],
    scale: Scale | Transfer,
    *,
    embedding: Callable[[float, int], float] = lambda std, width: 1.0,
) -> Table[Effective]:
    """Fills in the standard deviations of a table's matrices, and what else the scale sets.

    Args:
      table: rows of effective weights.
      scale: the initial scale.
      embedding: (std, width) -> constant multiplier of embed_tokens, `std` being that of `scale`; see
        `jaxstab.model.embeddings`.
    """
    width = next((row.width for row in rows(table) if row.role in ("embed_tokens", "lm_head")), 0)
    if isinstance(scale, Transfer) and not width:
        raise UserError("this initial scale reads the model's width off embed_tokens or lm_head; no matrix is either")

    def fill(row: Row) -> Row:
        if isinstance(scale, Transfer):
            row = scale.row(row, width)
        elif row.is_matrix:
            row = row.replace(std=scale(row))
        if row.role == "embed_tokens":
            std: Any = row.std
            multiplier = embedding(std, row.width)
            return row.replace(std=multiplier * std, multiplier=multiplier)
        return row

    filled = jax.tree.map(fill, table)
    stored = {row.path: divided(row.std, row.multiplier) for row in rows(filled)}
    return jax.tree.map(lambda row: _tied(row, stored[row.tied]) if row.tied else row, filled)


def _tied(row: Row, stored: Any) -> Row:
    """Gives a tied matrix its own scale, by a constant multiplier of its source, whose stored std is `stored`."""
    if row.std == 0:
        raise UserError(
            f"{row.path} begins at zero by this initial scale, and so can't be {row.tied} too; untie them: "
            "model.tie_embeddings=False"
        )
    multiplier: Any = divided(row.std, stored)
    return row if math.isclose(multiplier, row.multiplier) else row.replace(multiplier=multiplier)


def draw(key: jax.Array, table: Table[Effective]) -> Weights:
    """Draws effective weights in float32: N(0, std²) for matrices, the row's value for everything else.

    A parameter's draw depends on the key and on its path alone, so that a seed gives the same effective weights under
    every reparameterization and on every mesh. A tied matrix is its source's transpose, rescaled to its own std.
    """
    of = {row.path: row for row in rows(table)}

    def normal(row: Row) -> jax.Array:
        noise = jax.random.normal(jax.random.fold_in(key, zlib.crc32(row.path.encode())), row.shape, jnp.float32)
        return noise * _column(row.std, row)

    def leaf(row: Row) -> jax.Array:
        if not row.is_matrix:
            return jnp.broadcast_to(_column(row.value, row), row.shape)
        if row.tied:
            source = of[row.tied]
            return normal(source).T * (jnp.asarray(row.std) / jnp.asarray(source.std))
        return normal(row)

    return jax.tree.map(leaf, table)


def _column(value: Any, row: Row) -> jax.Array:
    """A scalar, or a vector over layers shaped to multiply a stacked parameter."""
    array = jnp.asarray(value, jnp.float32)
    return array.reshape(-1, *(1,) * (len(row.shape) - 1)) if array.ndim else array
