"""An optimizer's state that was lost or corrupted: moments that the gradients before don't make."""

from __future__ import annotations

from jaxstab.diagnose.causes.bad_resume import restored_steps
from jaxstab.diagnose.causes.base import Cause, Kind
from jaxstab.diagnose.causes.weights_changed import told
from jaxstab.diagnose.checks import broken_moments, together
from jaxstab.diagnose.history import History

FEW = 0.5  # of all stored parameters: chosen; where more moments broke at one step, it is no parameter's own


def find(history: History) -> list[Cause]:
    restored = history.once(restored_steps)
    events = together(each for each in history.once(broken_moments) if each.step not in restored)
    parameters = sum(each.layers for each in history.norms.values())
    causes = []
    for event in events:
        role, layer = event.places[0] if len(event.breaks) <= max(1, FEW * parameters) else (None, None)
        causes.append(
            Cause("optimizer_state", role, layer, None, event.first, event.last, told(event), certainty="identity")
        )
    return causes


OPTIMIZER_STATE = Kind(
    "moments of the optimizer were lost or corrupted",
    find,
    remedy="Go back to the checkpoint before that step: moments take as long to come back as they reach back.",
)
