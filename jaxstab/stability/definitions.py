"""What others call a spike: published definitions, from the values that a run has left in metrics.jsonl.

Every definition is a function of a series, one value per step, that says which steps it flags. Values that aren't
finite are no spikes by any of them and enter no statistic: they are taken out first, and counted apart (`nonfinite`).

The rules by which the training step itself judges (`jaxstab/stability/spikes.py`) are OLMo 2's and SkipStep's with one
change of this project's: a value far out enters their windows clipped (winsorised). They flag more, because a spike no
longer hides the next one, and so they stand under names of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.lib.stride_tricks import sliding_window_view

from jaxstab.numerics import ZClipStatistics, zclip_step
from jaxstab.stability.spikes import RULES, deviations_over, exceeds

Values = Float[np.ndarray, " n"]
Flags = Bool[np.ndarray, " n"]
LOSS, GRAD_NORM = "train/loss", "train/grad_norm"
CHUNK = 4096  # windows at once


class Definition(NamedTuple):
    """A definition and what it is about.

    Attributes:
      flags: values [n] -> flags [n].
      of: the metrics that its authors apply it to.
    """

    flags: Callable[[Values], Flags]
    of: tuple[str, ...]


def nonfinite(values: Values) -> int:
    """How many values are NaN or infinite."""
    return int((~np.isfinite(values)).sum())


def _of_finite(definition: Callable[[Values], Flags]) -> Callable[[Values], Flags]:
    """Applies a definition to the finite values alone."""

    @functools.wraps(definition)
    def flags(values: Values) -> Flags:
        values = np.asarray(values, np.float64)
        finite = np.isfinite(values)
        of_all = np.zeros(values.shape, bool)
        of_all[finite] = definition(values[finite])
        return of_all

    return flags


@_of_finite
def olmo_2(values: Values) -> Flags:
    """More than 7 standard deviations from the mean of the last 1,000 values, either way.

    The share of flagged steps is OLMo 2's spike score. The paper says what is said here, and nothing of the first
    values: this project lets 64 go by, as for the rules of the training step, and takes the standard deviation of all
    values before, not of a sample.
    Source: OLMo 2 (2025, arXiv 2501.00656), section 3.
    """
    mean, deviation = _of_those_before(values, 1000, least=64, ddof=0)
    return np.abs(values - mean) > 7 * deviation


@_of_finite
def skip_step(values: Values) -> Flags:
    """More than 6 standard deviations above the mean of the last 128 values, once there are 63.

    Source: OLMo-core, src/olmo_core/optim/skip_step_optimizer.py, with its sample standard deviation; it skips a step
    where the loss or the gradient's norm is such a value.
    """
    mean, deviation = _of_those_before(values, 128, least=63, ddof=1)
    return values - mean > 6 * deviation


def _of_those_before(values: Values, window: int, least: int, ddof: int) -> tuple[Values, Values]:
    """Mean and standard deviation of at most `window` values before each; NaN where there are fewer than `least`."""
    mean, deviation = np.full((2, len(values)), np.nan)
    for i in range(least, min(window, len(values))):
        mean[i], deviation[i] = values[:i].mean(), values[:i].std(ddof=ddof)
    for first in range(window, len(values), CHUNK):
        part = slice(first, min(first + CHUNK, len(values)))
        before = sliding_window_view(values[first - window : part.stop - 1], window)
        mean[part], deviation[part] = before.mean(axis=1), before.std(axis=1, ddof=ddof)
    return mean, deviation


def winsorised_olmo_2(values: Values) -> Flags:
    """The rule `olmo2` of the training step: OLMo 2's, with windows that a value enters clipped.

    Source: this project (`jaxstab/stability/spikes.py`).
    """
    return _by_rule(values, "olmo2")


def winsorised_skip_step(values: Values) -> Flags:
    """The rule `skip_step` of the training step: SkipStep's, with windows that a value enters clipped.

    Source: this project (`jaxstab/stability/spikes.py`).
    """
    return _by_rule(values, "skip_step")


def _by_rule(values: Values, rule: str) -> Flags:
    return np.asarray(exceeds(deviations_over(values)[rule], RULES[rule]))


@_of_finite
def rolling_median(values: Values) -> Flags:
    """More than 0.1 above the median of 201 steps, here those around the step, fewer at the ends.

    Source: the Qwen team, 2026 (arXiv 2608.30320; secondary: whether the window is centred is this project's reading).
    """
    half = 100
    return np.array(
        [value > 0.1 + np.median(values[max(0, i - half) : i + half + 1]) for i, value in enumerate(values)]
    )


@_of_finite
def kill_loss_spike(values: Values) -> Flags:
    """At least twice the mean of the window before, on more than 4 steps in a row; the fifth and later are flagged.

    The window is the last max(100, 5% of the run) values.
    Source: llm-foundry's KillLossSpike callback (secondary); its window takes in the values that it judges.
    """
    window = max(100, len(values) // 20)
    high = np.array([i >= window and value >= 2 * values[i - window : i].mean() for i, value in enumerate(values)])
    return _in_a_row(high) > 4


@_of_finite
def ten_times_the_largest(values: Values) -> Flags:
    """More than 10 times the largest value before.

    Source: Megatron-LM, rerun_state_machine.is_unexpectedly_large.
    """
    largest = np.maximum.accumulate(values)
    return np.concatenate([np.zeros(min(1, len(values)), bool), values[1:] > 10 * largest[:-1]])


@_of_finite
def over_threshold(values: Values) -> Flags:
    """More than twice the first value on 3 steps in a row; the third and later are flagged.

    Source: Axolotl's loss watchdog, patience 3 (secondary): its threshold is the user's, about twice the initial loss.
    """
    return _in_a_row(values > 2 * values[:1]) >= 3


@_of_finite
def zclip(values: Values) -> Flags:
    """More than 2.5 running standard deviations above a running mean (decay 0.97), after 25 values.

    Both statistics take in a flagged value as ZClip clips it, mean + 2.5² sd / z.
    Source: Kumar et al. 2025 (arXiv 2504.02507), and their code.
    """
    flags, statistics = np.zeros(len(values), bool), ZClipStatistics(0, 0.0, 0.0)
    for i, value in enumerate(values):
        flags[i], _, statistics = zclip_step(statistics, value, threshold=2.5, decay=0.97, warmup=25, xp=np)
    return flags


@_of_finite
def loss_ratio(values: Values) -> Flags:
    """More than 1.2 times the least value before.

    Source: Li et al. 2022 (remembered), who count steps above 1.2 and above 1.5.
    """
    least = np.minimum.accumulate(values)
    return np.concatenate([np.zeros(min(1, len(values)), bool), values[1:] > 1.2 * least[:-1]])


def _in_a_row(flags: Flags) -> np.ndarray:
    """How many flags in a row end at each step."""
    counts, run = np.zeros(len(flags), int), 0
    for i, flag in enumerate(flags):
        run = run + 1 if flag else 0
        counts[i] = run
    return counts


DEFINITIONS = {
    "OLMo 2": Definition(olmo_2, (LOSS, GRAD_NORM)),
    "SkipStep": Definition(skip_step, (LOSS, GRAD_NORM)),
    "OLMo 2, winsorised": Definition(winsorised_olmo_2, (LOSS, GRAD_NORM)),
    "SkipStep, winsorised": Definition(winsorised_skip_step, (LOSS, GRAD_NORM)),
    "rolling median": Definition(rolling_median, (LOSS,)),
    "KillLossSpike": Definition(kill_loss_spike, (LOSS,)),
    "10x the largest": Definition(ten_times_the_largest, (LOSS,)),
    "over threshold": Definition(over_threshold, (LOSS,)),
    "ZClip": Definition(zclip, (GRAD_NORM,)),
    "loss ratio": Definition(loss_ratio, (LOSS,)),
}
