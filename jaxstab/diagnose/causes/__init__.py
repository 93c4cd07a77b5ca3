"""Causes: one file per kind, one line here."""

from __future__ import annotations

import dataclasses

from jaxstab.diagnose.causes.attention_logits import ATTENTION_LOGITS
from jaxstab.diagnose.causes.bad_resume import BAD_RESUME
from jaxstab.diagnose.causes.base import CERTAINTIES, Advice, Cause, Kind
from jaxstab.diagnose.causes.data import DATA
from jaxstab.diagnose.causes.embedding_scale import EMBEDDING_SCALE
from jaxstab.diagnose.causes.gradient_corrupted import GRADIENT_CORRUPTED
from jaxstab.diagnose.causes.learning_rate import LEARNING_RATE
from jaxstab.diagnose.causes.nonfinite import NONFINITE
from jaxstab.diagnose.causes.not_known import NOT_KNOWN
from jaxstab.diagnose.causes.optimizer_state import OPTIMIZER_STATE
from jaxstab.diagnose.causes.output_logits import OUTPUT_LOGITS
from jaxstab.diagnose.causes.rate_off_schedule import RATE_OFF_SCHEDULE
from jaxstab.diagnose.causes.weight_decay import WEIGHT_DECAY
from jaxstab.diagnose.causes.weights_changed import WEIGHTS_CHANGED
from jaxstab.diagnose.history import History
from jaxstab.diagnose.normal import cost

# Of causes that are equally sure and begin at one step, the one that stands first here is said first.
CAUSES: dict[str, Kind] = {
    "bad_resume": BAD_RESUME,
    "embedding_scale": EMBEDDING_SCALE,
    "attention_logits": ATTENTION_LOGITS,
    "weights_changed": WEIGHTS_CHANGED,
    "optimizer_state": OPTIMIZER_STATE,
    "rate_off_schedule": RATE_OFF_SCHEDULE,
    "nonfinite": NONFINITE,
    "data": DATA,
    "gradient_corrupted": GRADIENT_CORRUPTED,
    "weight_decay": WEIGHT_DECAY,
    "output_logits": OUTPUT_LOGITS,
    "learning_rate": LEARNING_RATE,
    "not_known": NOT_KNOWN,
    "none": Kind("nothing out of the ordinary", lambda history: []),
}
NONE = Cause("none", evidence=("no identity is broken, and no measurement left what is usual for this run",))
ECHO = 60  # steps after a cause for which what isn't exact is put down to it: chosen
EARLY = 10  # steps before an exact cause at which a smoothed loss may seem to begin to rise: half of a level's window


def find_causes(history: History) -> list[Cause]:
    """Causes that the evidence bears out, the surest first; [Cause("none")] where there is none."""
    causes = ranked([cause for kind in CAUSES.values() for cause in kind.find(history)])
    return [dataclasses.replace(each, cost=cost(history, each.step, each.last)) for each in causes] or [NONE]


def ranked(causes: list[Cause]) -> list[Cause]:
    """Puts causes in order, the surest first, and folds what one of them explains under it.

    - What is exact comes first, by step; then what passed a bound; then what is unlike the run.
    - What isn't exact, and begins within ECHO steps after an exact cause, is its effect; so is whatever isn't finite
      anywhere in particular, after any cause.
    - An embedding that began too small explains other matrices that seem to have begun off their scale.
    - Trouble of no known cause is said where there is no other.
    """
    order = list(CAUSES)
    causes = sorted(causes, key=lambda each: (_rank(each), each.step if each.is_exact else 0, order.index(each.cause)))
    firsts: list[Cause] = []
    for cause in [each for each in causes if not _is_effect(each)] + [each for each in causes if _is_effect(each)]:
        origin = next((each for each in firsts if _explains(each, cause)), None)
        if origin is None:
            firsts.append(cause)
        else:
            firsts[firsts.index(origin)] = dataclasses.replace(origin, followed=(*origin.followed, _said(cause)))
    return firsts


def _rank(cause: Cause) -> int:
    return 0 if cause.is_exact else CERTAINTIES.index(cause.certainty)


def _is_effect(cause: Cause) -> bool:
    """Whether a cause may be the end of any other: nothing finite anywhere, or trouble of no known cause."""
    return cause.cause == "not_known" or (cause.cause == "nonfinite" and cause.role is None)


def _explains(first: Cause, cause: Cause) -> bool:
    if cause.cause == "not_known":
        return True
    if _is_effect(cause):
        return first.step <= cause.step
    if first.cause == "embedding_scale" and cause.cause == "weights_changed":
        return cause.step == first.step
    return first.is_exact and not cause.is_exact and first.step - EARLY <= cause.step <= first.last + ECHO


def _said(cause: Cause) -> str:
    place = f" of {cause.place}" if cause.place else ""
    return f"{cause.cause}{place} from step {cause.step}: {cause.evidence[0]}" if cause.evidence else cause.cause


def advice_against(history: History, cause: Cause) -> list[Advice]:
    """What would be changed in the config of a run with this cause, the best first."""
    return CAUSES[cause.cause].advice(history, cause)


__all__ = ["CAUSES", "ECHO", "NONE", "Advice", "Cause", "Kind", "advice_against", "find_causes", "ranked"]
