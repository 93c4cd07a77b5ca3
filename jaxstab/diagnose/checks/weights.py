"""What a step leaves is what the next begins with: weights that something else wrote to.

Where sketches were measured (jaxstab/stability/sketches.py) the sketch of a parameter at the beginning of a step must
be that at the end of the step before, up to the rounding of a sum. Logs without them have norms: from one step to the
next ‖W‖ changes by no more than ‖ΔW‖.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from jaxstab.diagnose.checks.base import Break, at_steps, consecutive
from jaxstab.diagnose.history import History
from jaxstab.diagnose.place import named, place_in_stack
from jaxstab.table import Row

# A sum of n float32 in blocks is off by √n roundings of its size; a sketch is summed along one axis, then the other.
# Sixteen times that: both sketches, and sums that aren't in blocks (a GPU's, a mesh's).
ROUNDINGS = 16.0
WITHOUT_CONFIG = 1e-3  # of ‖W‖, where the saved config doesn't tell the sizes: above the above for sizes up to 10⁵
BEYOND = 1.05  # of ‖ΔW‖: the bound is exact, 5% are for rounding
LEAST_CHANGE = 2e-3  # of ‖W‖: likewise, for what bfloat16 rounds


def broken_weights(history: History) -> list[Break]:
    """Every parameter and step whose beginning isn't the end of the step before, by step."""
    sketched = history.sketches("weight_after")
    breaks = [each for name in sketched for each in _by_sketch(history, name)]
    breaks += [each for name in history.measured("norm") if name not in sketched for each in _by_norm(history, name)]
    return sorted(breaks, key=lambda each: (each.step, -each.size))


def restored_from(history: History, step: int) -> int | None:
    """The earlier step that began with just the weights that `step` begins with; None where there is none."""
    series = [each for each in history.sketches("weight").values() if step in each.steps]
    if not series:
        return None
    earlier = []
    for each in series:
        with np.errstate(invalid="ignore"):
            is_same = np.abs(each.values - each.values[each.steps == step]) <= 1e-6 * np.abs(each.values)
        earlier.append(set(each.steps[is_same.all(axis=1)]))
    same = set.intersection(*earlier) - set(range(step, int(series[0].steps[-1]) + 1))
    return int(max(same)) if same else None


def _by_sketch(history: History, name: str) -> Iterator[Break]:
    before, after = history.sketches("weight").get(name), history.sketches("weight_after")[name]
    if before is None or before.layers != after.layers:
        return
    steps, left, begun = consecutive(after, before)
    norms = history.norms.get(name)
    norm_then, norm_now = (at_steps(norms, at, before.layers) for at in (steps, steps + 1))
    scale = np.fmax(norm_then, norm_now)
    off = np.abs(begun - left)
    broken = off > tolerance(history.stored.get(name)) * np.where(np.isfinite(scale), scale, np.inf)
    for i, layer in np.argwhere(broken & np.isfinite(off)):
        place, was, became = (name, place_in_stack(name, int(layer))), norm_then[i, layer], norm_now[i, layer]
        sentence = (
            f"{named(*place)} isn't at the beginning of step {steps[i] + 1} what step {steps[i]} left: its sketch is "
            f"{begun[i, layer]:.5g}, not {left[i, layer]:.5g}; its norm is {became:.4g}, {was:.4g} a step before"
            f"{_shape(left[i, layer], begun[i, layer], was, became)}"
        )
        yield Break(int(steps[i]) + 1, place, float(off[i, layer] / scale[i, layer]), sentence)


def _shape(left: float, begun: float, was: float, became: float) -> str:
    """In which way a parameter changed, in words: as a whole where its sketch and its norm changed by one factor."""
    if left == 0 or was == 0:
        return ""
    factor = begun / left
    is_whole = abs(abs(factor) * was - became) < 0.03 * max(abs(factor - 1) * was, 1e-3 * was)
    return f": all of it times {factor:.4g}" if is_whole else ": some of its entries"


def tolerance(row: Row | None) -> float:
    """By how much two sketches of the same array may differ, of its norm."""
    if row is None:
        return WITHOUT_CONFIG
    roots = sum(math.sqrt(size) for size in row.shape[int(row.stacked) :])
    return ROUNDINGS * float(np.finfo(np.float32).eps) * max(1.0, roots)


def _by_norm(history: History, name: str) -> Iterator[Break]:
    norms, ratios = history.measured("norm")[name], history.measured("update_ratio").get(name)
    if ratios is None or ratios.layers != norms.layers:
        return
    steps, before, after = consecutive(norms, norms)
    ratio = at_steps(ratios, steps, norms.layers)
    known = (before > 0) & np.isfinite(before) & np.isfinite(after) & ~np.isin(steps + 1, list(history.seams))[:, None]
    if name in history.shrunk:
        known &= after > before
    with np.errstate(invalid="ignore", over="ignore"):
        broken = known & (np.abs(after - before) > (BEYOND * ratio + LEAST_CHANGE) * before)
    for i, layer in np.argwhere(broken):
        place, was, became = (name, place_in_stack(name, int(layer))), before[i, layer], after[i, layer]
        sentence = (
            f"{named(*place)}: its norm went from {was:.4g} to {became:.4g} (x{became / was:.3g}) between steps "
            f"{steps[i]} and {steps[i] + 1}, where the update was {ratio[i, layer]:.2g} of it; no update of that size "
            "does that"
        )
        yield Break(int(steps[i]) + 1, place, float(abs(became - was) / max(was, became)), sentence)
