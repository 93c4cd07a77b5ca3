"""Mathematics that more than one room needs, as functions of arrays."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

TO_SD = 1.4826  # the standard deviation of a normal distribution, in medians of its absolute deviations


def robust_spread(deviations: Float[np.ndarray, "... n"]) -> np.ndarray:
    """The standard deviation of a normal distribution whose absolute deviations have the given ones' median.

    Args:
      deviations: from the center, `[..., n]`; NaN counts as no value.

    Returns:
      1.4826 times the median of the absolute deviations over the last axis.
    """
    return TO_SD * np.nanmedian(np.abs(deviations), axis=-1)


class ZClipStatistics(NamedTuple):
    """The running statistics of ZClip: how many norms they hold, their mean and their variance, scalars."""

    norms: Any
    mean: Any
    variance: Any


def zclip_step(
    statistics: ZClipStatistics, norm: Any, threshold: float, decay: float, warmup: int, xp: ModuleType = jnp
) -> tuple[Any, Any, ZClipStatistics]:
    """One norm judged by ZClip (Kumar et al. 2025, arXiv:2504.02507), whose code takes the variance about the new mean.

    z = (norm - μ) / (s + 1e-6). A norm of z > threshold is an outlier and is brought to μ + threshold² s / z. The
    statistics hold the norm as it is brought down: plainly for the first `warmup` norms, which are never outliers, and
    as moving averages from then on.

    Args:
      statistics: of the norms before.
      norm: a scalar of the library `xp`.
      threshold: standard deviations above the mean.
      decay: of the moving averages.
      warmup: how many norms give the first mean and variance.
      xp: `jax.numpy`, or `numpy` for float64.

    Returns:
      Whether the norm is an outlier, what it is brought to (itself where it is none), and the next statistics.
    """
    count, mean, variance = statistics
    deviation = xp.sqrt(variance)
    z = (norm - mean) / (deviation + 1e-6)
    is_outlier = (count >= warmup) & (z > threshold)
    norm = xp.where(is_outlier, mean + threshold**2 * deviation / xp.where(is_outlier, z, 1.0), norm)

    is_first = count < warmup
    weight = xp.where(is_first, 1 / (count + 1), 1 - decay)
    next_mean = mean + weight * (norm - mean)
    square = xp.where(is_first, (norm - mean) * (norm - next_mean), xp.square(norm - next_mean))
    return is_outlier, norm, ZClipStatistics(count + 1, next_mean, variance + weight * (square - variance))
