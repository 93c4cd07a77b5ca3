"""The initial scale of YuLan-Mini (Hu et al. 2024), the backbone of its WeSaR."""

from __future__ import annotations

import math
from typing import Annotated

from jaxstab.config import Range
from jaxstab.initialize.transfer import Transfer
from jaxstab.table import EMBEDDINGS, Row


def yulan_mini(
    sigma: Annotated[float, "Standard deviation of every stored matrix, wesar's sigma.", Range(above=0)] = 5e-5,
    base_width: Annotated[int, "Width at which the learning rate was tuned.", Range(1)] = 256,
    residual: Annotated[float, "c of the constant c/√N on residual branches.", Range(above=0)] = 1.4,
) -> Transfer:
    """muP's scale for hidden matrices, their depth-scaled form for the ends of branches, and smaller branches.

    Formula: with m = d / d_base, hidden matrices have std σ/√m and rate η/m, o_proj and down_proj σ/√(2mN), times
      the constant 1.4/√N of their branch; embeddings and lm_head σ
    Paper: Hu et al. 2024, YuLan-Mini (arXiv:2412.17743), section 3; RUC-GSAI/YuLan-Mini, pretrain/.
    Parameters: none.
    Checked against: its published initial gates, 0.36515 and 0.034503, as std/σ (tests/initialize).
    Certainty: primary for the gates and the rate (the authors' launch scripts, of their last phases); that σ = 5e-5 is
      a standard deviation and not a variance is read off the same scripts.
    """

    def row(row: Row, width: int) -> Row:
        m = width / base_width
        if row.role in (*EMBEDDINGS, "lm_head"):
            return row.replace(std=sigma)
        if row.branch:
            row = row.replace(multiplier=residual / math.sqrt(row.depth))
        if not row.is_matrix:
            return row
        depth = 2 * row.depth if row.branch else 1
        return row.replace(std=row.multiplier * sigma / math.sqrt(m * depth), learning_rate=1 / m)

    return Transfer(row, scales_branches=True)
