"""Learnable multipliers: trained scales beside matrices that keep their initial scale (Falcon-LLM Team 2026)."""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxstab.reparam.base import Method, Stored
from jaxstab.table import Row

# The multipliers by name, and the axis of the matrix that each runs along.
AXES: dict[str, dict[str, int | None]] = {
    "scalar": {"gate": None},
    "row": {"row": -2},
    "column": {"column": -1},
    "both": {"row": -2, "column": -1},
}


def learnable_multipliers(
    shape: Annotated[
        str,
        "What is multiplied: the whole matrix, every input unit (row), every output unit (column), or both; of an "
        "embedding a row is a token.",
        ("scalar", "row", "column", "both"),
    ] = "scalar",
) -> Method:
    """Scales that are trained, and start at 1, beside a matrix that weight decay holds.

    Weight decay and the noise of gradients bring a matrix to a norm of their own; a multiplier learns the norm that the
    data want. Unlike WeSaR's gates they leave the stored matrix at its initial scale. The paper gives them little decay
    (`optimizer.decay_factors=gate=0.02`) and leaves them out of the norm that is clipped
    (`optimizer.clip_vectors=False`).

    Formula: W̄ = s W, or W̄_ij = r_i W_ij c_j; s = r = c = 1 at initialization
    Paper: Falcon-LLM Team 2026 (arXiv:2601.04890), sections 3 and 4
    Parameters: 1 per matrix, or 1 per row, per column, or per both, of every matrix.
    Checked against: NumPy float64 (tests/reparam).
    Certainty: primary for the formula; which matrices have which, the paper tunes.
    """

    axes = AXES[shape]

    def rows(row: Row) -> dict[str, Row]:
        return {"weight": row, **{name: row.gate(1.0, axis) for name, axis in axes.items()}}

    def init(row: Row, weight: jax.Array, std: jax.Array, key: jax.Array) -> tuple[Stored, Any]:
        ones = {name: jnp.ones(() if axis is None else weight.shape[axis], weight.dtype) for name, axis in axes.items()}
        return {"weight": weight, **ones}, ()

    def effective(row: Row, stored: Stored, state: Any) -> tuple[jax.Array, Any]:
        weight = stored["weight"]
        for name, axis in axes.items():
            weight = weight * (stored[name][:, None] if axis == -2 else stored[name])
        return weight, state

    return Method(lambda row: row.is_matrix, rows, init, effective)
