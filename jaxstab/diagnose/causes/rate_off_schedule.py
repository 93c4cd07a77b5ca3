"""A rate that wasn't its schedule's, for some steps: a glitch of the schedule, or a hand on it."""

from __future__ import annotations

import numpy as np

from jaxstab.diagnose.causes.bad_resume import rates_of_other_steps
from jaxstab.diagnose.causes.base import Cause, Kind
from jaxstab.diagnose.checks import rates_off
from jaxstab.diagnose.history import History, events

# Where no config tells the schedule: a rate that departs by a third, and within NEAR values comes back to where it was,
# or a twentieth off for each value in between. Chosen: no schedule does that.
DEPARTS, COMES_BACK, NEAR = 0.33, 0.05, 12


def find(history: History) -> list[Cause]:
    if history.config is None:
        return _glitches(history)
    steps, factors = history.once(rates_off)
    own = ~np.isin(steps, list(history.once(rates_of_other_steps)))
    steps, factors = steps[own], factors[own]
    causes = []
    for first, last in events(np.ones(len(steps), bool), steps, gap=3):
        within = factors[(steps >= first) & (steps <= last)]
        low, high = float(within.min()), float(within.max())
        by = f"{low:.3g}" if high < 1.001 * low else f"{low:.3g} to {high:.3g}"
        sentence = f"the rate of {len(within)} steps from {first} to {last} was {by} times the schedule's"
        causes.append(Cause("rate_off_schedule", step=first, last=last, evidence=(sentence,), certainty="identity"))
    return causes


def _glitches(history: History) -> list[Cause]:
    """Stretches at which a logged rate departs from that before, and comes back."""
    steps, rates = history.scalar("train/learning_rate")
    causes, at = [], 1
    while at < len(rates):
        before, within = rates[at - 1], rates[at : at + NEAR + 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            back = np.flatnonzero(np.abs(within / before - 1) < COMES_BACK * np.arange(1, len(within) + 1))
            departs = np.abs(within[: back[0]] / before - 1) > DEPARTS if len(back) else np.zeros(0, bool)
        if before > 0 and len(departs) and departs.all():
            last = at + int(back[0]) - 1
            sentence = (
                f"the rate is {rates[at]:.3g} at step {steps[at]}, {before:.3g} at step {steps[at - 1]} and "
                f"{rates[last + 1]:.3g} again at step {steps[last + 1]}"
            )
            causes.append(Cause("rate_off_schedule", step=int(steps[at]), last=int(steps[last]), evidence=(sentence,)))
            at = last + 1
        at += 1
    return causes


RATE_OFF_SCHEDULE = Kind(
    "the learning rate was off its schedule",
    find,
    remedy="Go back to the checkpoint before those steps; the rate of the config is not what was wrong.",
)
