"""No reparameterization: what is used is what is stored (times the table's constant multipliers)."""

from __future__ import annotations

from jaxstab.reparam.base import Method


def identity() -> Method:
    """Stores every matrix as it is."""
    return Method(
        applies=lambda row: False,
        rows=lambda row: {"weight": row},
        init=lambda weight, std, key: ({"weight": weight}, ()),
        effective=lambda stored, state: (stored["weight"], state),
    )
