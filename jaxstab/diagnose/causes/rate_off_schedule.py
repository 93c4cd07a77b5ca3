"""A rate that wasn't its schedule's, for some steps: a glitch of the schedule, or a hand on it."""

from __future__ import annotations

import numpy as np

from jaxstab.diagnose.causes.bad_resume import rates_of_other_steps
from jaxstab.diagnose.causes.base import Cause, Kind
from jaxstab.diagnose.checks import rates_off
from jaxstab.diagnose.history import History, events


def find(history: History) -> list[Cause]:
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


RATE_OFF_SCHEDULE = Kind(
    "the learning rate was off its schedule",
    find,
    remedy="Go back to the checkpoint before those steps; the rate of the config is not what was wrong.",
)
