"""A bad resume: the run went on with a state, a place in the data or a rate that weren't where it had been."""

from __future__ import annotations

import itertools

import numpy as np

from jaxstab.diagnose.causes.base import Cause, Kind
from jaxstab.diagnose.checks import (
    Replaced,
    broken_weights,
    compared_batches,
    expected_rate,
    position_breaks,
    rates_off,
    records_from,
)
from jaxstab.diagnose.checks import restored_from as earlier_state
from jaxstab.diagnose.history import History

# Of all stored parameters: chosen; a fault of single matrices changes few of them, another state nearly all. Not all:
# what was drawn as ones or zeros may not have moved yet.
MOST = 0.8
LEAST_STEPS = 5  # chosen: steps that read from a place that is off by the same number, to call it a place


def find(history: History) -> list[Cause]:
    return sorted([*_states(history), *_positions(history), *_rates(history)], key=lambda cause: cause.step)


def restored_steps(history: History) -> frozenset[int]:
    """The steps that began with another state altogether."""
    steps = [each.step for each in history.once(broken_weights)]
    parameters = sum(each.layers for each in history.norms.values())
    return frozenset(step for step in set(steps) if steps.count(step) > max(2, MOST * parameters))


def read_elsewhere(history: History) -> frozenset[int]:
    """Steps that read on from another place in the data."""
    spans = history.once(_shifted)
    return frozenset(step for first, last, _ in spans for step in range(first, last + 1))


def rates_of_other_steps(history: History) -> frozenset[int]:
    """Steps whose rate is the schedule's for another place on it, to the run's end."""
    span = history.once(_late_rates)
    return frozenset(range(span[0], span[1] + 1)) if span else frozenset()


def _states(history: History) -> list[Cause]:
    causes = []
    for step in sorted(history.once(restored_steps)):
        earlier = earlier_state(history, step)
        which = f": they are those that step {earlier} began with" if earlier else ""
        count = sum(each.step == step for each in history.once(broken_weights))
        sentence = f"{count} stored parameters aren't at the beginning of step {step} what step {step - 1} left{which}"
        causes.append(Cause("bad_resume", step=step, last=step, evidence=(sentence,), certainty="identity"))
    return causes


def _positions(history: History) -> list[Cause]:
    causes = []
    breaks = position_breaks(history)
    if breaks:
        step, position, expected = breaks[0]
        sentence = f"step {step} reads from record {position} on, not from {expected}, and so do {len(breaks)} steps"
        causes.append(Cause("bad_resume", step=step, last=breaks[-1][0], evidence=(sentence,), certainty="identity"))
    for first, last, origin in history.once(_shifted):
        sentence = f"steps {first} to {last} were given {records_from(history, origin, last - first + 1)}"
        causes.append(Cause("bad_resume", step=first, last=last, evidence=(sentence,), certainty="identity"))
    return causes


def _shifted(history: History) -> list[tuple[int, int, int]]:
    """Spans of steps whose batches stand as far away from their places: (first, last, the first one's record)."""
    compared = history.once(compared_batches)
    after = dict(itertools.pairwise(compared.steps))
    spans: list[list[Replaced]] = []
    for each in compared.replaced:
        if each.origin is None:
            continue
        before = spans[-1][-1] if spans else None
        if before and after[before.step] == each.step and _shift(before) == _shift(each):
            spans[-1].append(each)
        else:
            spans.append([each])
    return [(span[0].step, span[-1].step, span[0].origin or 0) for span in spans if len(span) >= LEAST_STEPS]


def _shift(replaced: Replaced) -> int:
    return (replaced.origin or 0) - replaced.place


def _rates(history: History) -> list[Cause]:
    span = history.once(_late_rates)
    if not span:
        return []
    first, last, shift = span
    sentence = f"the rate of steps {first} to {last} is the schedule's for {abs(shift)} steps {_before(shift)}"
    return [Cause("bad_resume", step=first, last=last, evidence=(sentence,), certainty="identity")]


def _before(shift: int) -> str:
    return "earlier" if shift < 0 else "later"


def _late_rates(history: History) -> tuple[int, int, int] | None:
    """Steps from one on to the run's end whose rates are those of as many steps on: (first, last, by how many)."""
    off, _ = history.once(rates_off)
    steps, rates = history.scalar("train/learning_rate")
    if len(off) < LEAST_STEPS or off[-1] != steps[-1] or len(off) != (steps >= off[0]).sum() or off[0] == steps[0]:
        return None
    first, last = int(off[0]), int(off[-1])
    own = rates[steps >= first]
    for shift in range(1 - first, first):
        expected = expected_rate(history, steps[steps >= first] + shift)
        if shift and np.allclose(own, expected, rtol=1e-4) and not np.allclose(own, own[0], rtol=1e-4):
            return first, last, shift
    return None


BAD_RESUME = Kind(
    "the run went on from another place than it had come to",
    find,
    remedy="Start again from the newest intact checkpoint before that step, into a workdir of its own if need be.",
)
