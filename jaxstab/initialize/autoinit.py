"""AutoInit (Bingham and Miikkulainen 2021): the scale by which every matrix puts out unit variance."""

from __future__ import annotations

import jax

from jaxstab.initialize.scales import Scale
from jaxstab.table import EMBEDDINGS, Row, Std


def autoinit() -> Scale:
    """AutoInit: mean and variance are followed through the layers, and each matrix is scaled to unit variance.

    Formula: 1/√(d_in E[x²]) of what a matrix reads: 1 after a norm; E f(z)² after the activation f, z ~ N(0, 1), or
      after a function in a norm's place; the sum of the branches' variances where there is none; embeddings 1
    Paper: Bingham and Miikkulainen 2021 (arXiv:2109.08958), section 3; cognizant-ai-labs/autoinit.
    Parameters: none.
    Checked against: SciPy's integrals, and the variances of a forward pass (tests/initialize).
    Certainty: primary for the rules (the authors' code), which has none for embeddings, which are scaled like other
      matrices here, nor for attention, which keeps its values' variance, as what the code doesn't know does.
    """

    def std(row: Row) -> Std:
        if row.role in EMBEDDINGS:
            return 1.0
        return jax.tree.map(lambda square: (row.fan_in * square) ** -0.5, row.reads())

    return std
