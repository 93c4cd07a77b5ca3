"""A learning rate that is too high for the method at hand: the loss says so, not how far matrices moved.

Matrices that start small grow by half in healthy runs, and a run may be better at sixty times its rate; what tells is
that a model unlearned within its first steps, that it was moved far and learned nothing, or lost what it had learned.
How far matrices grew tells their initial scale: a small one grows thirtyfold in a healthy run.
"""

from __future__ import annotations

import numpy as np

from jaxstab.diagnose.causes.base import Advice, Cause, Kind
from jaxstab.diagnose.causes.data import odd_batches
from jaxstab.diagnose.history import History
from jaxstab.diagnose.normal import columns
from jaxstab.numerics import robust_spread

RISE = 0.25  # nats above the least loss, for good: chosen, ten times what a median over LEVEL losses is unsure by
NOISES = 8.0  # robust standard deviations of the loss from its own level, over √LEVEL: chosen
LEVEL = 21  # losses whose median is the level: chosen
LEAST_LOSSES = 60  # chosen: with fewer no rise is looked for
# What the median matrix moved, of its norm, summed over as many steps: it has forgotten where it began. Measured, no
# healthy run moves by more than half of that.
MOVED, SOON = 1.0, 20
UNTAUGHT = 0.05  # nats below the loss of token frequencies: chosen; less than that is nothing learned
EARLY = 100  # steps: chosen, in which a model falls steeply, and a rate comes to its peak
SMOOTH = 9  # losses whose median is a level among them: chosen, more than a few easy batches
LOST = 0.75  # nats of such a level above the least so far: measured, at most 0.46 in 150 healthy runs
WHOLE = 1.0  # ‖ΔW̄‖ / ‖W̄‖ of the median matrix in one step: the update is as large as the matrix


def find(history: History) -> list[Cause]:
    """The first of the ways in which it shows."""
    return _whole(history) or _worse(history) or _untaught(history) or _rising(history)


def advice(history: History, cause: Cause) -> list[Advice]:
    peak = float(history.saved.get("optimizer.learning_rate", 0.0))
    if not peak:
        return []
    why = "a tenth of this run's peak; compare finds the best"
    return [Advice(f"optimizer.learning_rate={peak / 10:.2g}", why)]


LEARNING_RATE = Kind("the learning rate is too high", find, advice)


def moved(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and ‖ΔW̄‖ / ‖W̄‖ of the median matrix at each."""
    ratios = history.measured("update_ratio_effective") or history.measured("update_ratio")
    steps, _, values = columns(ratios)
    finite = np.isfinite(values).any(axis=1) if len(values) else np.zeros(0, bool)
    known = np.where(np.isfinite(values[finite]), values[finite], np.nan)
    return steps[finite], np.nanmedian(known, axis=1) if len(known) else np.zeros(0)


def _whole(history: History) -> list[Cause]:
    """Updates as large as the matrices, in a run that ended worse than it began, or not finite."""
    steps, ratios = history.once(moved)
    _, loss = history.scalar("train/loss")
    large = steps[ratios > WHOLE]
    if not len(large) or (np.isfinite(loss[-1]) and loss[-1] < loss[0]):
        return []
    step = int(large[0])
    sentence = f"the update of step {step} is {ratios[steps == step][0]:.3g} times as large as the median matrix"
    return [_cause(history, step, sentence, certainty="bound")]


def _worse(history: History) -> list[Cause]:
    """A loss whose level rose again among the first steps, where a healthy one only falls."""
    steps, loss = history.scalar("train/loss")
    early = np.where(np.isfinite(loss[:EARLY]), loss[:EARLY], np.inf)
    if len(early) < SMOOTH or steps[0] != 1 or history.once(odd_batches):
        return []
    level = _levels(early, SMOOTH - 1, 0)
    least = np.minimum.accumulate(level)
    lost = (level > least + LOST) & (np.arange(len(early)) >= SMOOTH - 1)
    if not lost.any():
        return []
    at = int(lost.argmax())
    sentence = (
        f"the loss rose again within the first {steps[at]} steps: {level[at]:.3g} in the median of {SMOOTH} of them, "
        f"where it had been {least[at]:.3g}"
    )
    return [_cause(history, int(steps[at - SMOOTH // 2]), sentence)]


def _untaught(history: History) -> list[Cause]:
    """A loss no better than that of token frequencies, the median matrix having moved by its norm."""
    steps, ratios = history.once(moved)
    of_loss, loss = history.scalar("train/loss")
    at, of_tokens = history.scalar("train/unigram_loss")
    both = np.intersect1d(of_loss, at)[-LEVEL:]
    if len(both) < LEVEL or len(steps) < SOON:
        return []
    soon = np.convolve(ratios, np.ones(SOON), "valid")
    beside = np.median(loss[np.isin(of_loss, both)] - of_tokens[np.isin(at, both)])
    if not beside > -UNTAUGHT or not soon.max() > MOVED or steps[soon.argmax()] > both[0]:
        return []
    sentence = (
        f"the loss of the last {LEVEL} steps is {beside:+.2f} nats beside that of token frequencies alone, and the "
        f"median matrix moved by {soon.max():.2g} times its norm in {SOON} steps"
    )
    return [_cause(history, int(steps[soon.argmax()]), sentence)]


def _rising(history: History) -> list[Cause]:
    """A loss whose level at the end is above the least it had, with no one step at which it jumped."""
    steps, loss = _beside_frequencies(history)
    if len(loss) < LEAST_LOSSES or history.once(odd_batches):
        return []
    level = _levels(loss, LEVEL // 2, LEVEL // 2)
    noise = float(robust_spread(loss - level)) / np.sqrt(LEVEL)
    least, end = int(level.argmin()), float(np.median(loss[-max(LEVEL, len(loss) // 5) :]))
    rise = max(RISE, NOISES * noise)
    if not end > level[least] + rise:
        return []
    onset = steps[np.flatnonzero(level <= level[least] + rise / 2)[-1]]
    sentence = (
        f"the loss rises by {end - level[least]:.2f} nats from its least level, around step {steps[least]}, and stays "
        "there, with no one step at which it jumped"
    )
    return [_cause(history, int(onset), sentence)]


def _levels(loss: np.ndarray, before: int, after: int) -> np.ndarray:
    """The median of each loss with as many before and after it, as far as they are there."""
    return np.array([np.median(loss[max(0, i - before) : i + after + 1]) for i in range(len(loss))])


def _beside_frequencies(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite losses, less what a batch owes to tokens that are rarer than others', where that is known."""
    steps, loss = history.scalar("train/loss")
    at, of_tokens = history.scalar("train/unigram_loss")
    if len(at) and np.array_equal(at, steps):
        loss = loss - (of_tokens - np.median(of_tokens))
    return steps[np.isfinite(loss)], loss[np.isfinite(loss)]


def _cause(history: History, step: int, sentence: str, certainty: str = "statistic") -> Cause:
    steps, rates = history.scalar("train/learning_rate")
    at = rates[steps == step]
    rate = (f"the learning rate is {at[0]:.3g} then, {np.nanmax(rates):.3g} at its peak",) if len(at) else ()
    last = int(history.scalar("train/loss")[0][-1])
    return Cause("learning_rate", step=step, last=last, evidence=(sentence, *rate), certainty=certainty)
