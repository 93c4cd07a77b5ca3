"""Residual scaling as a reparameterization (Noci et al. 2022)."""

from __future__ import annotations

import math

from jaxstab.reparam.base import Method


def residual_scaling() -> Method:
    """A constant in front of every residual branch: on o_proj and down_proj, and on their biases.

    Formula: x + f(N(x)) / √(2N), as W̄ = W / √(2N) for the last matrix and bias of each branch
    Paper: Noci et al. 2022, equation 8 and section 4.3; Nishida et al. 2024, section 5.3 and appendix C.3.
    Parameters: none.
    Checked against: branches scaled one by one in the model (tests/reparam).
    Certainty: primary, by Nishida et al.'s account of it.

    The effective std stays the backbone's, so that its own 1/√(2N), if it has one, isn't applied twice: stored matrices
    are √(2N) times larger than without this method.
    """
    return Method(
        applies=lambda row: bool(row.branch),
        rows=lambda row: {"weight": row.replace(multiplier=1 / math.sqrt(2 * row.depth))},
        init=lambda row, weight, std, key: ({"weight": weight}, ()),
        effective=lambda row, stored, state: (stored["weight"], state),
        kind="constant",
    )
