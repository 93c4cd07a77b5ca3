"""A learning rate that is too high: all matrices grow fast, or the loss rises for good.

Updates that add up like independent ones make ‖W‖² grow by the sum of ‖ΔW‖². A learning rate shows in all
matrices at once, a fault of one matrix in that matrix alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxstab.diagnose.causes.base import Advice, Cause, Kind
from jaxstab.diagnose.causes.data import odd_batches
from jaxstab.diagnose.history import History

SPAN = 50  # steps in which growth is judged: this project's choice
# Growth of the median ‖W̄‖ in SPAN steps, in which ‖W̄‖² grows by half of itself. Measured (docs/results/diagnose.md):
# healthy small models grow by 1.05 to 1.12, and by 1.3 where they began to spike; at 4.5 times their rate and more, by
# 1.4 and more.
TOO_FAST = math.sqrt(1.5)
VIOLENT = 3.0  # likewise: this project's choice; in such a growth no single change of a norm stands out
RISE = 0.5  # nats above the least loss, for good: this project's choice
LEAST_LOSSES = 60  # this project's choice: with fewer losses no rise is looked for


class Growth(NamedTuple):
    """By how much a matrix grew, and between which steps."""

    factor: float
    first: int
    last: int


def find(history: History) -> list[Cause]:
    """Judges by the growth of matrices, then by a loss that rises without having jumped at any step."""
    if history.once(growth).factor >= TOO_FAST:
        return [_too_fast(history)]
    return [] if history.once(odd_batches) else _rising_loss(history)


def advice(history: History, cause: Cause) -> list[Advice]:
    warmup = 2 * int(history.saved.get("optimizer.warmup", 0)) or 200
    return [
        lower_rate(history),
        Advice(f"optimizer.warmup={warmup}", "a longer warm-up, where the first updates are what is too large"),
        Advice("optimizer.rule.adamw.b2=0.95", "second moments that follow a change of the gradient sooner"),
    ]


LEARNING_RATE = Kind("the learning rate is too high", find, advice)


def lower_rate(history: History) -> Advice:
    """The peak rate over twice the factor that matrices grew by, or over 3 where that factor is below 1.5."""
    _, rates = history.scalar("train/learning_rate")
    peak = np.max(rates, initial=0.0, where=np.isfinite(rates))
    factor = 2 * max(1.5, history.once(growth).factor)
    value = f"{peak / factor:.1g}" if peak > 0 else "..."
    why = f"the peak of this run over {factor:.2g}, twice what matrices grew by in {SPAN} steps (or 3, if that is more)"
    return Advice(f"optimizer.learning_rate={value}", why)


def growth(history: History) -> Growth:
    """The most that the median matrix grew over SPAN steps, ‖W̄‖ to ‖W̄‖; (1, 0, 0) where norms are missing."""
    steps, log_norms = _log_norms(history)
    span = min(SPAN, len(steps) - 1)
    if span < 1:
        return Growth(1.0, 0, 0)
    with np.errstate(invalid="ignore"):
        factors = np.median(log_norms[span:] - log_norms[:-span], axis=1)
    at = int(np.where(np.isfinite(factors), factors, -np.inf).argmax())
    if not np.isfinite(factors[at]):
        return Growth(1.0, 0, 0)
    return Growth(math.exp(factors[at]), int(steps[at]), int(steps[at + span]))


def _log_norms(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and log ‖W̄‖ [n, matrices], or log ‖W‖ where that is all there is."""
    norms = history.measured("norm_effective") or history.measured("norm")
    if not norms:
        return np.zeros(0, np.int64), np.zeros((0, 0))
    steps = next(iter(norms.values())).steps
    columns = [series.values for series in norms.values() if np.array_equal(series.steps, steps)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return steps, np.log(np.concatenate(columns, axis=1))


def _too_fast(history: History) -> Cause:
    factor, first, last = history.once(growth)
    onset = _onset(history)
    sentence = (
        f"between steps {first} and {last} the median matrix grew to {factor:.3g} times its norm: its updates add up "
        f"to {math.sqrt(factor**2 - 1):.2g} times what was there"
    )
    return Cause("learning_rate", step=onset, evidence=(sentence, *_rate(history, onset)))


def _onset(history: History) -> int:
    """The first step by which the median matrix grew by half of TOO_FAST since the start.

    Where the matrices shrank first, and so never grew by as much, it is the first step of the fastest growth.
    """
    steps, log_norms = _log_norms(history)
    with np.errstate(invalid="ignore"):
        typical = np.median(log_norms, axis=1)
        grown = typical - typical[0] > 0.5 * math.log(TOO_FAST)
    return int(steps[grown.argmax()]) if grown.any() else history.once(growth).first


def _rate(history: History, step: int) -> list[str]:
    steps, rates = history.scalar("train/learning_rate")
    at = int(np.searchsorted(steps, step))
    if at >= len(steps) or not np.isfinite(rates).any():
        return []
    return [f"the learning rate is {rates[at]:.3g} then, {np.nanmax(rates):.3g} at its peak"]


def _rising_loss(history: History) -> list[Cause]:
    """The cause where the loss of the run's last fifth is above the least loss by more than RISE."""
    steps, loss = history.scalar("train/loss")
    finite = np.isfinite(loss)
    steps, loss = steps[finite], loss[finite]
    if len(loss) < LEAST_LOSSES:
        return []
    smooth = np.array([np.median(loss[max(0, i - 10) : i + 11]) for i in range(len(loss))])
    end = float(np.median(loss[-len(loss) // 5 :]))
    least = int(smooth.argmin())
    if end <= smooth[least] + RISE:
        return []
    sentence = (
        f"the loss rises from {smooth[least]:.3f} around step {steps[least]} to {end:.3f} and stays there, with no "
        "one step at which it jumped"
    )
    return [Cause("learning_rate", step=int(steps[least]), evidence=(sentence, *_rate(history, int(steps[least]))))]
