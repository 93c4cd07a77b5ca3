"""Trouble without a cause that is borne out: the step, and the layer and role that moved first."""

from __future__ import annotations

import numpy as np

from jaxstab.diagnose.causes.base import Cause, Kind
from jaxstab.diagnose.history import History, events
from jaxstab.diagnose.moved import moved_before
from jaxstab.diagnose.normal import trend
from jaxstab.diagnose.place import place_in_stack
from jaxstab.numerics import robust_spread

EXCESS = 0.5  # nats above the trend of the steps before: chosen, as for a stretch of odd batches
NOISES = 8.0  # robust standard deviations of the loss: chosen
LASTING = 3  # steps in a row: chosen; a single step may be its batch's
KNOWN = 64  # losses before, from which on a trend is steady: chosen
MOST_SENTENCES = 3


def find(history: History) -> list[Cause]:
    """The first time that the loss went far above its trend."""
    span = _trouble(history)
    if span is None:
        return []
    first, last, excess = span
    moved = moved_before(history, first)
    sentence = f"the loss is {excess:+.2f} nats from its trend at its farthest, from step {first} on"
    evidence = (sentence, *(f"moved first: {each}" for each in moved[:MOST_SENTENCES]))
    role, layer = None, None
    if moved and moved[0].layer is not None:
        role, layer = moved[0].part, place_in_stack(moved[0].part, moved[0].layer)
    return [Cause("not_known", role, layer, None, moved[0].step if moved else first, last, evidence)]


NOT_KNOWN = Kind(
    "something went wrong, and no cause is borne out",
    find,
    remedy="Replay the steps with everything measured: main.py diagnose --replay=<step>.",
)


def _trouble(history: History) -> tuple[int, int, float] | None:
    """The first and last step of the first stretch above the trend, and by how much at most."""
    steps, loss = history.scalar("train/loss")
    if len(loss) <= KNOWN:
        return None
    noise = float(robust_spread(np.diff(loss[np.isfinite(loss)][KNOWN // 2 :]))) / np.sqrt(2)
    levels = np.array([np.min(loss[max(0, i - KNOWN) : i]) if i else np.inf for i in range(len(loss))])
    with np.errstate(invalid="ignore"):
        high = (loss > levels + max(EXCESS, NOISES * noise)) & (np.arange(len(loss)) >= KNOWN)
    for first, last in events(high, steps, gap=2 * history.stride):
        within = (steps >= first) & (steps <= last)
        excess = loss[within] - trend(history, first, steps[within])
        if within.sum() >= LASTING and np.nanmedian(excess) > max(EXCESS, NOISES * noise):
            return first, last, float(np.nanmax(excess))
    return None
