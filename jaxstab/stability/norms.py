"""Norms and update ratios, a vector over layers for every role."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.table import Row, Table, by_role


def matrix_norm(row: Row, weight: Float[Array, "*L I O"]) -> Float[Array, "*L"]:
    """Frobenius norm of a matrix, or of each layer of a stack, in float32."""
    return jnp.sqrt(jnp.sum(jnp.square(weight.astype(jnp.float32)), axis=(-2, -1)))


def update_ratio(table: Table, update: Any, stored: Any) -> dict[str, jax.Array]:
    """‖ΔW‖/‖W‖ of every stored matrix before the update (Nishida et al. 2024, section 1).

    Returns:
      {role: ratio}, `[L]` for stacked roles and scalar for the others, float32.
    """
    return by_role(lambda row, du, w: matrix_norm(row, du) / matrix_norm(row, w), table, update, stored)
