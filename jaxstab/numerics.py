"""Mathematics that more than one room needs, as functions of arrays."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxstab.table import Row

Axes = int | tuple[int, ...] | None

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


def widened(x: Array) -> Array:
    """`x` in float32 where its dtype is narrower, as bfloat16 is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def l2_norm(x: Array, axis: Axes = None, keepdims: bool = False) -> Array:
    """√(Σ x²) over the axes, by default over all."""
    return jnp.sqrt(jnp.sum(jnp.square(widened(x)), axis=axis, keepdims=keepdims))


def rms(x: Array, axis: Axes = None, keepdims: bool = False) -> Array:
    """√(mean x²) over the axes, by default over all."""
    return jnp.sqrt(jnp.mean(jnp.square(widened(x)), axis=axis, keepdims=keepdims))


def mean_over_rows(x: Float[Array, "B ..."], axes: tuple[int, ...]) -> Array:
    """The mean over the rows of a batch, axis 0, and over further axes of each.

    The rows' means are brought to every device before they are added up, so that it is rounded alike however rows are
    divided among hosts.
    """
    means = jnp.mean(x, axis=axes)
    return jnp.mean(nn.with_logical_constraint(means, (None,) * means.ndim), axis=0)


def layer_axes(row: Row, x: Array) -> tuple[int, ...]:
    """The axes within one layer: all but the first where the parameter is stacked, all where it isn't."""
    return tuple(range(int(row.stacked), x.ndim))


def matrix_norm(row: Row, weight: Float[Array, "*L I O"], keepdims: bool = False) -> Float[Array, "*L"]:
    """Frobenius norm of a matrix, or of each layer of a stack; a vector's is its L2 norm."""
    return l2_norm(weight, layer_axes(row, weight), keepdims)


def unit(vector: Array) -> Array:
    """A vector over its norm, in its own shape; a vector of zeros stays one."""
    norm = l2_norm(vector)
    return vector / jnp.where(norm > 0, norm, 1.0)


def power_iteration(
    forward: Callable[[Array], Array], backward: Callable[[Array], Array], v: Array
) -> tuple[Array, Array]:
    """One power iteration on a linear map: u = A v / ‖A v‖, v' = Aᵀ u / ‖Aᵀ u‖.

    Source: Golub and Van Loan, Matrix Computations. u and v converge to the first singular vectors of A.

    Args:
      forward, backward: A and its transpose.
      v: a vector that A is applied to, of any shape.

    Returns:
      u and v'.
    """
    u = unit(forward(v))
    return u, unit(backward(u))


def largest_singular_value(
    forward: Callable[[Array], Array], backward: Callable[[Array], Array], start: Array, iterations: int
) -> Float[Array, ""]:
    """The largest singular value of a linear map A, from below: ‖A v‖ after power iterations from v = `start`."""
    v = jax.lax.fori_loop(0, iterations, lambda _, v: power_iteration(forward, backward, v)[1], unit(start))
    return l2_norm(forward(v))
