"""The scalars of Fixup (Zhang, Dauphin and Ma 2019): a multiplier for each branch, and one number in a bias."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.reparam.base import Method, Stored
from jaxstab.table import MATRICES, Row


def fixup() -> Method:
    """One trained multiplier for each residual branch, from 1, and a bias of one number for each matrix that has one.

    Formula: x + a f(x), a = 1 at initialization, as W̄ = a W for the last matrix of each branch; b̄ = b 1, or a b 1 there
    Paper: Zhang, Dauphin and Ma 2019 (arXiv:1901.09321), section 3, rule 3; hongyi-zhang/Fixup.
    Parameters: 1 per branch; 1 per bias in place of d_out, where the model has biases (model.bias).
    Checked against: NumPy float64 (tests/reparam).
    Certainty: primary for the multipliers. The authors have a scalar before every matrix and activation too; those
      after a matrix, which model.bias has a place for, are this project's reading, and lm_head has none.

    Its initial scale is `init.method=fixup`.
    """

    def is_bias(row: Row) -> bool:
        module, _, name = row.path.rpartition("/")
        return name == "bias" and module.rpartition("/")[2] in MATRICES

    def rows(row: Row) -> dict[str, Row]:
        gate = row.gate(1.0)
        if row.is_matrix:
            return {"weight": row, "gate": gate}
        bias = gate.replace(role="bias", value=row.value, decay=row.decay)
        return {"bias": bias, "gate": gate.replace(tied=row.branch)} if row.branch else {"bias": bias}

    def init(row: Row, weight: jax.Array, std: jax.Array, key: jax.Array) -> tuple[Stored, Any]:
        stored = {"weight": weight} if row.is_matrix else {"bias": jnp.mean(weight)}
        return (stored | {"gate": jnp.ones((), weight.dtype)} if row.branch else stored), ()

    def effective(row: Row, stored: Stored, state: Any) -> tuple[jax.Array, Any]:
        gate = stored.get("gate", 1.0)
        if row.is_matrix:
            return gate * stored["weight"], state
        return jnp.full(row.shape[-1:], gate * stored["bias"]), state

    return Method(lambda row: bool(row.branch) or is_bias(row), rows, init, effective, kind="branch", preserves=False)
