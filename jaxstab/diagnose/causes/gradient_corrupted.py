"""The gradient of one matrix that departed alone: a faulty chip, link or kernel.

A batch, a rate or a layer that went wrong show in the gradients of many matrices. A gradient that was corrupted after
it was computed shows in its own matrix, and in no other of that step.
"""

from __future__ import annotations

import numpy as np

from jaxstab.diagnose.causes.base import Cause, Kind
from jaxstab.diagnose.checks import broken_weights
from jaxstab.diagnose.history import History
from jaxstab.diagnose.normal import columns, departures
from jaxstab.diagnose.place import named

# How many times farther than any departure before, of its own and of the median matrix, and than the next matrix at the
# same step. Measured on 25,000 healthy steps of 120 configs: at most 2.9 times as far as both, and 2.4 times where the
# next step departs too.
ALONE, AGAIN = 5.0, 3.0
GOES_ON = 0.5  # of the first departure, on the steps after it: chosen


def find(history: History) -> list[Cause]:
    steps, places, norms = columns(history.measured("grad_norm"))
    if len(places) < 3:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(np.maximum(norms, 1e-3 * np.nanmin(np.where(norms > 0, norms, np.inf), axis=0)))
    beyond, multiples = departures(values)
    changed = {each.step for each in history.once(broken_weights)}
    causes: list[Cause] = []
    for i in np.flatnonzero((np.nan_to_num(multiples) > AGAIN).any(axis=1)):
        farthest, others = _first_two(multiples[i])
        column = int(np.nanargmax(multiples[i]))
        last = _last(beyond[:, column], int(i))
        least = AGAIN if last > i else ALONE
        if farthest < least * max(1.0, others) or steps[i] in changed or (causes and causes[-1].last >= steps[i] - 1):
            continue
        factor = np.exp(beyond[i, column])
        sentence = (
            f"the gradient of {named(*places[column])} is {factor:.3g} times what it was beside the others', "
            f"{farthest:.2g} times as far as it ever went in the steps before; the next one went "
            f"{others / farthest:.0%} as far"
        )
        role, layer = places[column]
        causes.append(Cause("gradient_corrupted", role, layer, None, int(steps[i]), int(steps[last]), (sentence,)))
    return causes


def _first_two(multiples: np.ndarray) -> tuple[float, float]:
    known = np.sort(multiples[np.isfinite(multiples)])[::-1]
    return float(known[0]), float(known[1]) if len(known) > 1 else np.inf


def _last(departure: np.ndarray, first: int) -> int:
    last = first
    while last + 1 < len(departure) and departure[last + 1] / departure[first] > GOES_ON:
        last += 1
    return last


GRADIENT_CORRUPTED = Kind(
    "the gradient of one matrix was corrupted",
    find,
    remedy="Replay those steps on another machine: a gradient that comes out otherwise is a faulty chip's or link's.",
)
