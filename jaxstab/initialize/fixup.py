"""Fixup initialization (Zhang, Dauphin and Ma 2019): residual branches that begin at zero, in place of norms."""

from __future__ import annotations

import math

from jaxstab.initialize.scales import Scale
from jaxstab.table import BRANCH_OUTPUTS, EMBEDDINGS, Row, Std


def fixup() -> Scale:
    """Fixup: an update changes the output alike at every depth, so that norms are needless.

    Formula: with L = 2N branches, 0 for o_proj, down_proj and lm_head; √(2/(d_in + d_out)), times L^(-1/6) for q, k
      and v, L^(-1/2) for up_proj; embeddings 1/√d
    Paper: Zhang, Dauphin and Ma 2019 (arXiv:1901.09321), section 3; hongyi-zhang/Fixup, transformer_zero_lm.
    Parameters: none; its scalars are `reparam.method=fixup`. It is meant for model.norm_placement=none and
      model.embedding.method=scaled.
    Checked against: NumPy float64 and measured draws (tests/initialize).
    Certainty: primary for models of attention and an MLP of two matrices (the authors' code, where q, k and v are one
      matrix, whose Xavier std is 1/√2 of ours). That gate_proj and g_proj have no factor, since up_proj's and v_proj's
      are what the condition asks of their products, is this project's.
    """
    exponents = {"q_proj": 1 / 6, "k_proj": 1 / 6, "v_proj": 1 / 6, "up_proj": 1 / 2}

    def std(row: Row) -> Std:
        if row.role in EMBEDDINGS:
            return row.width**-0.5
        if row.role in (*BRANCH_OUTPUTS, "lm_head"):
            return 0.0
        branches = 2 * row.depth
        return branches ** -exponents.get(row.role, 0.0) * math.sqrt(2 / (row.fan_in + row.fan_out))

    return std
