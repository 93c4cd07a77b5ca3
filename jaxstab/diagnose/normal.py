"""What is normal for this run: measurements beside their own past, and beside their siblings at the same step."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view

from jaxstab.diagnose.history import CHUNK, History, Series, usual
from jaxstab.diagnose.place import Place, place_in_stack

NEAR = 8  # values before whose median is where a measurement is: chosen, short enough for the first fall of a gradient
PAST = 32  # departures before, the largest of which is what the run does by itself: chosen
LEAST = 16  # of them that must be there
TREND = 48  # losses before a step whose line in log step is the trend: chosen
SPAN = 30  # steps after a cause that still count to its cost: chosen


def columns(by_name: dict[str, Series]) -> tuple[np.ndarray, list[Place], np.ndarray]:
    """Series of one measurement side by side: their steps, the place of each column, and the values `[n, places]`.

    Series of other steps than most are left out.
    """
    if not by_name:
        return np.zeros(0, np.int64), [], np.zeros((0, 0))
    steps = max((each.steps for each in by_name.values()), key=len)
    same = {name: each for name, each in by_name.items() if np.array_equal(each.steps, steps)}
    places = [(name, place_in_stack(name, at)) for name, each in same.items() for at in range(each.layers)]
    return steps, places, np.concatenate([each.values for each in same.values()], axis=1)


def departures(values: Float[np.ndarray, "n places"]) -> tuple[np.ndarray, np.ndarray]:
    """How far each value departs from its own level, beyond what the others do at the same step.

    Args:
      values: on a scale on which changes add up, as logarithms do.

    Returns:
      The departures `[n, places]`: a value less the median of the NEAR before it, less the median of that over all
      places; and each as a multiple of the largest one of that place, or of the median place, over the PAST steps
      before. NaN where fewer than LEAST are known.
    """
    if not len(values):
        return values, values
    center, _ = usual(values, np.arange(len(values)), NEAR, NEAR // 2)
    own = np.where(np.isfinite(values), values, np.nan) - center
    together = np.where(np.isfinite(own).any(axis=1), _median(own), 0.0)
    beyond = own - together[:, None]
    largest = _largest_before(np.abs(beyond))
    typical = np.where(np.isfinite(largest).any(axis=1), _median(largest), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return beyond, np.abs(beyond) / np.fmax(largest, typical[:, None])


def _median(values: np.ndarray) -> np.ndarray:
    """Median over places; NaN, without a warning, where there is none."""
    known = np.isfinite(values)
    return np.nanmedian(np.where(known.any(axis=1, keepdims=True), np.where(known, values, np.nan), 0.0), axis=1)


def _largest_before(sizes: np.ndarray) -> np.ndarray:
    """The largest of the PAST values before each; NaN where fewer than LEAST are known. A part of the steps at once."""
    padded = np.concatenate([np.full((PAST, sizes.shape[1]), np.nan), sizes])
    windows = sliding_window_view(padded, PAST, axis=0)[:-1]
    largest = np.full(sizes.shape, np.nan)
    for start in range(0, len(sizes), CHUNK):
        part = windows[start : start + CHUNK]
        known = np.isfinite(part)
        largest_known = np.where(known, part, -np.inf).max(axis=-1)
        largest[start : start + CHUNK] = np.where(known.sum(-1) >= LEAST, largest_known, np.nan)
    return largest


def trend(history: History, step: int, after: np.ndarray) -> np.ndarray:
    """The loss that steps `after` would have had, had it gone on as in the TREND steps before `step`.

    A line through medians in the logarithm of the step; NaN where fewer than 16 losses are before.
    """
    steps, loss = history.scalar("train/loss")
    known = np.isfinite(loss) & (steps < step)
    steps, loss = steps[known][-TREND:], loss[known][-TREND:]
    if len(loss) < LEAST:
        return np.full(len(after), np.nan)
    half = len(loss) // 2
    x = np.log(steps)
    (early, late), (low, high) = ((np.median(part[:half]), np.median(part[half:])) for part in (x, loss))
    slope = min(0.0, (high - low) / (late - early))  # a loss that rose before goes on level
    return high + slope * (np.log(after) - late)


def cost(history: History, step: int, last: int) -> float | None:
    """Nats by which the loss was above its trend from before, in the mean over `step` to `last` or over SPAN steps on.

    The larger of both: batches that come again are soon known by heart, and cost what was known before.
    """
    steps, loss = history.scalar("train/loss")
    if step <= 1:
        return None
    means = []
    for first, end in ((step, last), (last + 1, last + SPAN)):
        within = (steps >= first) & (steps <= end)
        excess = loss[within] - trend(history, step, steps[within])
        means += [float(np.mean(excess[np.isfinite(excess)]))] if np.isfinite(excess).any() else []
    return max(means, default=None)
