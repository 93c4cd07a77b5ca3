"""A matrix that something else than its update changed, or that began off its initial scale."""

from __future__ import annotations

from jaxstab.diagnose.causes.base import Cause, Kind
from jaxstab.diagnose.causes.weight_changes import Change, weight_changes
from jaxstab.diagnose.history import History


def find(history: History) -> list[Cause]:
    """Every change of weights but that of a layer's queries and keys together, which is a cause of its own."""
    return [_cause(change) for change in history.once(weight_changes) if not change.queries_and_keys]


WEIGHTS_SCALED = Kind("one matrix was changed by something else than its update", find)


def _cause(change: Change) -> Cause:
    role, layer = change.places[0]
    evidence = change.evidence
    if len(change.places) > len(evidence):
        evidence = (*evidence, f"{len(change.places)} matrices changed so at that step")
    return Cause("weights_scaled", role, layer, None, change.step, evidence, from_outside=True)
