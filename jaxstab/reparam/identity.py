"""No reparameterization: effective weights are the stored ones (times the table's constant multipliers)."""

from __future__ import annotations

from jaxstab.reparam.base import Method


def identity() -> Method:
    """Stores every matrix as it is.

    Formula: W̄ = W
    Paper: none.
    Parameters: none.
    Checked against: every other method, which starts from the same effective weights (tests/reparam).
    Certainty: primary.
    """
    return Method(
        applies=lambda row: False,
        rows=lambda row: {"weight": row},
        init=lambda row, weight, std, key: ({"weight": weight}, ()),
        effective=lambda row, stored, state: (stored["weight"], state),
        kind="none",
    )
