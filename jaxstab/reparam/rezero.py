"""ReZero: residual branches that start at zero (Bachlechner et al. 2020)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.reparam.base import Method, Stored
from jaxstab.table import Row


def rezero() -> Method:
    """One trainable gate per residual branch, 0 at initialization: every block starts as the identity.

    Formula: x + a f(x), a = 0 at initialization, as W̄ = a W for the last matrix of each branch, b̄ = a b for its bias
    Paper: Bachlechner et al. 2020, equation 1; De and Smith 2020, SkipInit.
    Parameters: 1 per branch.
    Checked against: a model whose branches are zero, and NumPy float64 (tests/reparam).
    Certainty: remembered; the paper takes the norms out, which is the business of model.norm_placement.
    """

    def rows(row: Row) -> dict[str, Row]:
        gate = row.gate(0.0)
        return {"weight": row, "gate": gate if row.is_matrix else gate.replace(tied=row.branch)}

    def init(row: Row, weight: jax.Array, std: jax.Array, key: jax.Array) -> tuple[Stored, Any]:
        # The branch of a matrix of zeros is zero with the gate 1 too; with the gate 0, neither would get a gradient.
        return {"weight": weight, "gate": jnp.where(jnp.any(weight), 0.0, 1.0).astype(weight.dtype)}, ()

    def effective(row: Row, stored: Stored, state: Any) -> tuple[jax.Array, Any]:
        return stored["gate"] * stored["weight"], state

    return Method(lambda row: bool(row.branch), rows, init, effective, kind="branch", preserves=False)
