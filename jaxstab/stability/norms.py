"""Norms, ratios and gates: a vector over layers for every role that is stacked, a scalar for the others, in float32."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.numerics import matrix_norm, rms
from jaxstab.table import Effective, Raw, Row, Side, Stored, Table, Tree, by_role, leaves_of, rows


def global_norm(table: Table[Side], tree: Tree[Side]) -> Float[Array, ""]:
    """L2 norm of a whole tree, from the norms of its leaves: where these are measured too, it costs no further pass."""
    norms = jax.tree.leaves(jax.tree.map(matrix_norm, table, tree))
    return jnp.sqrt(sum(jnp.sum(jnp.square(norm)) for norm in norms))


def matrix_rms(row: Row, weight: Float[Array, "*L I O"]) -> Float[Array, "*L"]:
    """Root of the mean square of a matrix, or of each layer of a stack: ‖W‖ / √(d_in d_out)."""
    return matrix_norm(row, weight) / math.sqrt(row.fan_in * row.fan_out)


def update_ratio(table: Table[Side], update: Tree[Side], weights: Tree[Side]) -> dict[str, jax.Array]:
    """‖ΔW‖/‖W‖ of every matrix, stored or effective, W being that before the update (Nishida et al. 2024, section 1).

    Returns:
      {role: ratio}, `[L]` for stacked roles and scalar for the others, float32.
    """
    return by_role(lambda row, du, w: matrix_norm(row, du) / matrix_norm(row, w), table, update, weights)


def gates(table: Table[Effective], stored_table: Table[Stored], raw: Raw) -> dict[str, jax.Array]:
    """The gate of every matrix that is stored with one; where the gate is a vector, its root mean square.

    Args:
      table: rows of the effective weights.
      stored_table: rows of what is stored, gates among them.
      raw: what is stored.

    Returns:
      {role: gate}, `[L]` or scalar; a second gate of one role has its path as its name.
    """
    by_name: dict[str, jax.Array] = {}
    for row, stored_rows, stored in zip(
        rows(table), leaves_of(table, stored_table), leaves_of(table, raw), strict=True
    ):
        for stored_row, gate in zip(rows(stored_rows), jax.tree.leaves(stored), strict=True):
            if row.is_matrix and stored_row.role == "gate":
                is_vector = gate.ndim > row.stacked
                by_name[row.role if row.role not in by_name else stored_row.path] = (
                    rms(gate, axis=-1) if is_vector else gate
                )
    return by_name


def gate_statistics(by_role: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """gate_log_ratio: log |α_q / α_k| of what `gates` gives, `[L]`; nothing where queries or keys have none.

    Logits depend on the product of the two gates, so that nothing but decay holds their ratio (YuLan-Mini and Falcon
    decay gates; Hu et al. 2024, arXiv:2412.17743). It begins at 0 where both are drawn alike.
    """
    if not {"q_proj", "k_proj"} <= by_role.keys():
        return {}
    return {"stability/gate_log_ratio": jnp.log(jnp.abs(by_role["q_proj"] / by_role["k_proj"]))}


def nonfinite_fraction(table: Table[Side], tree: Tree[Side]) -> dict[str, jax.Array]:
    """Fraction of the entries of every matrix that are NaN or infinite.

    They are counted only where a norm isn't finite, so that healthy steps pay for nothing but `matrix_norm`.
    """
    norms = by_role(matrix_norm, table, tree)

    def counted(tree: Any) -> dict[str, jax.Array]:
        return by_role(lambda row, x: jnp.mean(~jnp.isfinite(x), axis=(-2, -1), dtype=jnp.float32), table, tree)

    is_finite = jnp.stack([jnp.isfinite(norm).all() for norm in norms.values()]).all()
    zeros = jax.tree.map(lambda norm: jnp.zeros(norm.shape, jnp.float32), norms)
    return jax.lax.cond(is_finite, lambda _: zeros, counted, tree)
