"""WeSaR: weight scaling as reparameterization (Nishida et al., EMNLP 2024, section 4.1)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxstab.config import Range
from jaxstab.reparam.base import Method, Stored
from jaxstab.table import Row, divided


def wesar(
    sigma: Annotated[
        float, "Common standard deviation of every stored matrix; the paper's is sqrt(4e-5).", Range(above=0)
    ] = math.sqrt(4e-5),
    trainable_gates: Annotated[bool, "Whether gates are trained; Table 7's `fixed` ablation when not."] = True,
) -> Method:
    """One trainable gate per matrix, and one common standard deviation for everything that is stored.

    Formula: W̄ = α W, W ~ N(0, σ²), α = std(W̄) / σ at initialization
    Paper: Nishida et al. 2024, section 4.1 and Table 1.
    Parameters: 1 per matrix.
    Checked against: NumPy float64, and a PyTorch training of 20 steps (tests/parity).
    Certainty: primary; the paper leaves decay of the gates open.

    The backbone, which sets std(W̄), is the initial scale of the run. A matrix's constant multiplier is absorbed by its
    gate: the embedding of standard deviation 1 has the gate 1/σ = 158.
    """

    def rows(row: Row) -> dict[str, Row]:
        gate = row.gate(divided(row.std, sigma))
        return {"weight": row.replace(std=sigma, multiplier=1.0), "gate": gate}

    def init(row: Row, weight: jax.Array, std: jax.Array, key: jax.Array) -> tuple[Stored, Any]:
        gate = jnp.where(std > 0, std / sigma, 1.0)  # a matrix of zeros, as some models have, stays zero and can grow
        return {"weight": weight / gate, "gate": gate}, ()

    def effective(row: Row, stored: Stored, state: Any) -> tuple[jax.Array, Any]:
        gate = stored["gate"] if trainable_gates else jax.lax.stop_gradient(stored["gate"])
        return gate * stored["weight"], state

    return Method(lambda row: row.is_matrix, rows, init, effective, absorbs=True, fixed_gates=not trainable_gates)
