"""WeSaR: weight scaling as reparameterization (Nishida et al., EMNLP 2024, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxstab.config import Range
from jaxstab.reparam.base import Method, Stored
from jaxstab.table import EMBEDDINGS, Row, divided


def wesar(
    sigma: Annotated[
        float, "Common standard deviation of every stored matrix; the paper's is sqrt(4e-5).", Range(above=0)
    ] = math.sqrt(4e-5),
    trainable_gates: Annotated[bool, "Whether gates are trained; Table 7's `fixed` ablation when not."] = True,
    gates: Annotated[
        str,
        "`each` matrix has one, or, as in YuLan-Mini, `shared`: gate_proj and up_proj have one together, norms have "
        "one too, and embeddings none (needs model.mlp=swiglu).",
        ("each", "shared"),
    ] = "each",
) -> Method:
    """One trainable gate per matrix, and one common standard deviation for everything that is stored.

    Formula: W̄ = α W, W ~ N(0, σ²), α = std(W̄) / σ at initialization
    Paper: Nishida et al. 2024, section 4.1 and Table 1; for `shared` gates Hu et al. 2024 (arXiv:2412.17743).
    Parameters: 1 per matrix.
    Checked against: NumPy float64, and a PyTorch training of 20 steps (tests/parity); for `shared` gates the merging
      of its release (tests/exchange).
    Certainty: primary; the paper leaves decay of the gates open.

    The backbone, which sets std(W̄), is the initial scale of the run. A matrix's constant multiplier is absorbed by its
    gate: the embedding of standard deviation 1 has the gate 1/σ = 158. In YuLan-Mini it stays beside the gate.
    """
    if gates == "shared":
        return _shared(sigma, trainable_gates)

    def rows(row: Row) -> dict[str, Row]:
        gate = row.gate(divided(row.std, sigma))
        return {"weight": row.replace(std=sigma, multiplier=1.0), "gate": gate}

    def init(row: Row, weight: jax.Array, std: jax.Array, key: jax.Array) -> tuple[Stored, Any]:
        gate = _scale(std, sigma)
        return {"weight": weight / gate, "gate": gate}, ()

    effective = _gated(trainable_gates)
    return Method(lambda row: row.is_matrix, rows, init, effective, absorbs=True, fixed_gates=not trainable_gates)


def _shared(sigma: float, trainable_gates: bool) -> Method:
    def applies(row: Row) -> bool:
        return row.role == "norm" or (row.is_matrix and row.role not in EMBEDDINGS)

    def begins_at_one(row: Row) -> bool:
        # The matrix of a tied head is the embedding's, which has no gate that could take its scale.
        return row.role == "norm" or bool(row.tied)

    def rows(row: Row) -> dict[str, Row]:
        if begins_at_one(row):
            return {"weight": row, "gate": row.gate(1.0)}
        gate = row.gate(divided(row.std, sigma))
        shared = row.path.replace("up_proj", "gate_proj") if row.role == "up_proj" else ""
        return {"weight": row.replace(std=sigma), "gate": gate.replace(tied=shared)}

    def init(row: Row, weight: jax.Array, std: jax.Array, key: jax.Array) -> tuple[Stored, Any]:
        if row.role in ("gate_proj", "up_proj") and row.std is None:
            std = jnp.full_like(std, row.fan_in**-0.5)  # of two matrices' measured scales, a gate can have only one
        gate = jnp.ones_like(std) if begins_at_one(row) else _scale(std, sigma)
        return {"weight": weight / gate, "gate": gate}, ()

    return Method(applies, rows, init, _gated(trainable_gates), fixed_gates=not trainable_gates)


def _scale(std: jax.Array, sigma: float) -> jax.Array:
    """std/σ, or 1 for a matrix of zeros, as some models have: it stays zero and can grow."""
    return jnp.where(std > 0, std / sigma, 1.0)


def _gated(trainable: bool) -> Callable[[Row, Stored, Any], tuple[jax.Array, Any]]:
    def effective(row: Row, stored: Stored, state: Any) -> tuple[jax.Array, Any]:
        gate = stored["gate"] if trainable else jax.lax.stop_gradient(stored["gate"])
        return gate * stored["weight"], state

    return effective
