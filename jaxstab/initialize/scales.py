"""Initial scales: functions `row -> std` of the effective weights."""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxstab.table import BRANCH_OUTPUTS, EMBEDDINGS, Row

Scale = Callable[[Row], float]


def _residual(row: Row) -> float:
    """1/√(2N) for the last matrix of a residual branch (Radford et al. 2019)."""
    return 1 / math.sqrt(2 * row.depth) if row.role in BRANCH_OUTPUTS else 1.0


def he() -> Scale:
    """gain/√fan_in, times 1/√(2N) for o_proj and down_proj (He et al. 2015; Nishida et al. 2024, Table 1).

    The gain is √2 for down_proj, whose input comes out of the activation, and 1 elsewhere. An embedding's fan-in is its
    width, since a row of it is what enters the residual stream.
    """

    def std(row: Row) -> float:
        gain = math.sqrt(2) if row.role == "down_proj" else 1.0
        fan_in = row.fan_out if row.role in EMBEDDINGS else row.fan_in
        return gain / math.sqrt(fan_in) * _residual(row)

    return std


def small() -> Scale:
    """√(2/(5d)), times 1/√(2N) for o_proj and down_proj (Nguyen and Salazar 2019; Nishida et al. 2024, Table 1)."""
    return lambda row: math.sqrt(2 / (5 * row.width)) * _residual(row)
