"""What a few runs say: intervals, paired differences, and how much a method minds its learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

DRAWS = 10_000


class Estimate(NamedTuple):
    """A mean with its 95% interval by resampling, NaN where there is one value, of `n` values."""

    mean: float
    low: float
    high: float
    n: int


class Paired(NamedTuple):
    """A mean difference over pairs with its interval, and how often signs drawn at random give one as large."""

    difference: Estimate
    p: float


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of some values; a percentile bootstrap, whose draws are the same whenever it is asked.

    There is no interval, NaN, where a value isn't finite.
    """
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        return Estimate(float(array.mean()), np.nan, np.nan, len(array))
    if len(array) < 2 or np.ptp(array) == 0:
        mean = float(array.mean()) if len(array) else np.nan
        end = mean if len(array) > 1 else np.nan
        return Estimate(mean, end, end, len(array))
    result = scipy.stats.bootstrap(
        (array,), np.mean, n_resamples=DRAWS, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = result.confidence_interval
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Paired:
    """The difference to a baseline over the seeds that both have; p by permutation, two-sided.

    Args:
      values, baseline: {seed: loss}. A seed stands for the same batches and the same draw. Where a loss isn't finite
        there is no difference: NaN.
    """
    seeds = sorted(set(values) & set(baseline))
    differences = np.array([values[seed] - baseline[seed] for seed in seeds])
    if not np.isfinite(differences).all():
        return Paired(Estimate(np.nan, np.nan, np.nan, len(seeds)), np.nan)
    if len(seeds) < 2:
        return Paired(estimate(differences), np.nan)
    result = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=DRAWS, rng=np.random.default_rng(0)
    )
    return Paired(estimate(differences), float(result.pvalue))


def sensitivity(losses: Mapping[float, float], initial: float) -> float:
    """E_η[min(ℓ(η), ℓ₀) - ℓ*]: what a learning rate that is off costs (Wortsman et al. 2023, section 2.2).

    Args:
      losses: {rate: final loss}; a run that diverged has NaN or infinity, and counts as ℓ₀.
      initial: ℓ₀, the loss before the first step.
    """
    values = np.array([losses[rate] for rate in sorted(losses)], np.float64)
    capped = np.minimum(np.where(np.isfinite(values), values, initial), initial)
    return float(np.mean(capped - capped.min()))


def between(losses: Mapping[float, float]) -> tuple[float, float]:
    """The rate at which a parabola through the best rate and its neighbours is lowest, over the logarithm of the rate,
    and how far below the best loss; NaN where the best has no neighbour on one side, or one that diverged.

    Args:
      losses: {rate: loss}.
    """
    rates = sorted(losses)
    place = min(range(len(rates)), key=lambda place: (losses[rates[place]], place))
    x = np.log(rates[max(place - 1, 0) : place + 2])
    y = np.array([losses[rate] for rate in rates[max(place - 1, 0) : place + 2]])
    if len(x) < 3 or not np.isfinite(y).all():
        return np.nan, np.nan
    a, b, _ = np.polyfit(x - x[1], y - y[1], 2)  # through the origin; a > 0, as the first of equal losses is the best
    return float(np.exp(x[1] - b / (2 * a))), float(b * b / (4 * a))


def rank_correlation(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Estimate:
    """Spearman's ρ of pairs of values, with its 95% interval by resampling pairs; NaN for fewer than three."""
    pairs = np.array([first, second], np.float64)
    count = pairs.shape[1]
    if count < 3:
        return Estimate(np.nan, np.nan, np.nan, count)
    drawn = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw of one pair alone has no ranks to correlate
        low, high = np.nanquantile(_spearman(*pairs[:, drawn]), (0.025, 0.975))
        return Estimate(float(_spearman(*pairs)), float(low), float(high), count)


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's ρ along the last axis."""
    a, b = (
        each - each.mean(axis=-1, keepdims=True) for each in (scipy.stats.rankdata(x, axis=-1) for x in (first, second))
    )
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
