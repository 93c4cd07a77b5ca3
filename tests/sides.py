"""Not run, but read by mypy: what belongs to effective weights can't be passed for what is stored.

Each `type: ignore` is needed, for mypy warns of one that isn't (`warn_unused_ignores`).
"""

from __future__ import annotations

from jaxstab.stability import global_norm
from jaxstab.table import Effective, Gradients, Raw, RawGradients, Stored, Table, Weights
from jaxstab.train.setup import Setup


def mixed(
    setup: Setup,
    table: Table[Effective],
    stored_table: Table[Stored],
    weights: Weights,
    raw: Raw,
    gradients: Gradients,
    raw_gradients: RawGradients,
) -> None:
    global_norm(table, gradients)
    global_norm(stored_table, raw_gradients)
    global_norm(table, raw_gradients)  # type: ignore[misc]
    global_norm(stored_table, gradients)  # type: ignore[misc]
    global_norm(setup.table, raw)  # type: ignore[misc]
    global_norm(setup.stored_table, weights)  # type: ignore[misc]
    setup.reparam.effective(raw, ())
    setup.reparam.effective(weights, ())  # type: ignore[arg-type]
