"""The rate is the schedule's: what was logged against what the config and the journal give."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxstab.config import build_method
from jaxstab.diagnose.history import History
from jaxstab.optimize import SCHEDULES
from jaxstab.optimize.schedules import with_warmup
from jaxstab.train.journal import Journal

ROUNDING = 1e-4  # of the rate, which is a float32


def expected_rate(history: History, steps: np.ndarray) -> np.ndarray:
    """The rate that each step should have had; NaN where the config was lost."""
    if history.config is None:
        return np.full(len(steps), np.nan)
    options = history.config.optimizer
    shape = with_warmup(build_method(options.schedule, SCHEDULES), options.warmup, history.config.train.steps)
    factors = np.array([_factor(history.journal, int(step)) for step in steps], float)
    return options.learning_rate * factors * np.array(shape(jnp.asarray(steps - 1)), np.float64)


def _factor(journal: Journal, step: int) -> float:
    """The factor on the rate of a step that is in force: that of the last roll-back to a step before it."""
    before = [rollback for rollback in journal.rollbacks if rollback.to < step]
    return before[-1].learning_rate if before and step <= before[-1].until else 1.0


def rates_off(history: History) -> tuple[np.ndarray, np.ndarray]:
    """The steps whose rate wasn't the schedule's, and by what factor."""
    steps, rates = history.scalar("train/learning_rate")
    expected = history.once(_expected)
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.isfinite(rates) & (np.abs(rates - expected) > ROUNDING * np.abs(expected))
        return steps[off], (rates / expected)[off]


def _expected(history: History) -> np.ndarray:
    return expected_rate(history, history.scalar("train/learning_rate")[0])
