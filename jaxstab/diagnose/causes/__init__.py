"""Causes: one file per kind, one line here."""

from __future__ import annotations

from jaxstab.diagnose.causes.attention_logits import ATTENTION_LOGITS
from jaxstab.diagnose.causes.base import Advice, Cause, Kind
from jaxstab.diagnose.causes.data import DATA
from jaxstab.diagnose.causes.embedding_scale import EMBEDDING_SCALE
from jaxstab.diagnose.causes.learning_rate import LEARNING_RATE
from jaxstab.diagnose.causes.nonfinite import NONFINITE
from jaxstab.diagnose.causes.weights_scaled import WEIGHTS_SCALED
from jaxstab.diagnose.history import History

# In the order of the report: what evidence bears out best comes first. "none" is said where there is no other cause.
CAUSES: dict[str, Kind] = {
    "weights_scaled": WEIGHTS_SCALED,
    "embedding_scale": EMBEDDING_SCALE,
    "learning_rate": LEARNING_RATE,
    "data": DATA,
    "attention_logits": ATTENTION_LOGITS,
    "nonfinite": NONFINITE,
    "none": Kind("nothing out of the ordinary", lambda history: []),
}
NONE = Cause("none", evidence=("no measurement left what is usual in a way that a cause is known for",))
ECHO = 60  # steps for which jumps of the loss are put down to a change of weights: this project's choice


def find_causes(history: History) -> list[Cause]:
    """Causes that the evidence bears out, the best first; [Cause("none")] where there is none."""
    return ranked([cause for kind in CAUSES.values() for cause in kind.find(history)]) or [NONE]


def ranked(causes: list[Cause]) -> list[Cause]:
    """Leaves out what another cause explains, and puts changes from outside first, by step.

    - An embedding that began too small explains other matrices that seem to have begun off their scale.
    - A change of weights explains the jumps of the loss within ECHO steps after it.

    What causes must know of each other while they look is in their own files: where matrices grow violently, a change
    of weights has to be beyond its update (weight_changes), and a loss that jumped does not rise by its rate alone
    (learning_rate).
    """
    outside = sorted((cause for cause in causes if cause.from_outside), key=lambda cause: cause.step)
    if any(cause.cause == "embedding_scale" for cause in outside):
        outside = [cause for cause in outside if cause.cause == "embedding_scale" or cause.step > 1]

    def is_echo(cause: Cause) -> bool:
        return cause.cause == "data" and any(0 <= cause.step - change.step <= ECHO for change in outside)

    return outside + [cause for cause in causes if not cause.from_outside and not is_echo(cause)]


def advice_against(history: History, cause: Cause) -> list[Advice]:
    """What would be changed in the config of a run with this cause, the best first."""
    return CAUSES[cause.cause].advice(history, cause)


__all__ = ["CAUSES", "ECHO", "NONE", "Advice", "Cause", "Kind", "advice_against", "find_causes", "ranked"]
