"""Weights that something else than the optimizer changed: what three causes rest on.

From one step to the next ‖W‖ changes by no more than ‖ΔW‖, which is measured. What goes beyond that was done from
outside. So was what makes a matrix begin at another scale than its initialization gives it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from jaxstab.diagnose.causes.base import Place, named, place_in_stack
from jaxstab.diagnose.causes.learning_rate import VIOLENT, growth
from jaxstab.diagnose.history import History, Series, usual
from jaxstab.table import Row

# All of these are this project's.
BEYOND = 1.05  # of ‖ΔW‖: the bound is exact, 5% are for rounding
LEAST_CHANGE = 2e-3  # of ‖W‖: likewise, for what bfloat16 rounds
WITHIN = 0.5  # of ‖ΔW‖: less is not examined, since ΔW is mostly orthogonal to W (docs/results/diagnose.md)
UNUSUAL = 15.0  # robust standard deviations: chosen, for a change within its update
WINDOW, LEAST_KNOWN = 32, 6  # chosen: changes before that say what is usual, and how many there must be
FEW = 0.1  # of all matrices: chosen; where more change unusually at one step, the optimizer did it
BY_CHANCE = 5.0  # standard deviations of the norm of a drawn matrix, 1/√(2n) of it, and 1% for rounding
BY_LAYER = 10.0  # robust standard deviations over layers, and 5%: chosen, where no initial scale is known
MOST_SENTENCES = 4


@dataclasses.dataclass(frozen=True)
class Change:
    """Matrices that changed at one step.

    Attributes:
      step: the first with the changed weights.
      places: the matrices, the one that changed most first.
      sentences: one for each.
    """

    step: int
    places: tuple[Place, ...]
    sentences: tuple[str, ...]

    @property
    def evidence(self) -> tuple[str, ...]:
        return self.sentences[:MOST_SENTENCES]

    @property
    def queries_and_keys(self) -> Place | None:
        """The q_proj of the layer in which queries and keys both changed; None unless it was q_proj or k_proj that
        changed most of all matrices."""
        both = [at for role, at in self.places if role == "q_proj" and ("k_proj", at) in self.places]
        role, layer = self.places[0]
        if role not in ("q_proj", "k_proj") or not both:
            return None
        return "q_proj", layer if layer in both else min(both, key=lambda at: at or 0)


def weight_changes(history: History) -> list[Change]:
    """What changed before the first step, and from one step to the next, in the order of steps."""
    changes = []
    if off := history.once(off_initial_scale):
        changes.append(Change(1, tuple(each.place for each in off), tuple(str(each) for each in off)))
    for step, group in itertools.groupby(_jumps(history), key=lambda jump: jump.step):
        together = list(group)
        changes.append(Change(step, tuple(each.place for each in together), tuple(str(each) for each in together)))
    return changes


# -- from one step to the next


@dataclasses.dataclass(frozen=True)
class Jump:
    """A matrix whose norm changed between the step before and this one.

    Attributes:
      ratio: ‖ΔW‖ / ‖W‖ of the update between them.
      beyond: whether the change is more than the update can do.
    """

    step: int
    place: Place
    before: float
    after: float
    ratio: float
    beyond: bool

    @property
    def factor(self) -> float:
        return self.after / self.before

    @property
    def size(self) -> float:
        return abs(math.log(self.factor)) if self.factor > 0 else math.inf

    def __str__(self) -> str:
        why = "no update of that size does that" if self.beyond else "unlike any change of it before"
        return (
            f"{named(*self.place)}: its norm went from {self.before:.4g} to {self.after:.4g} "
            f"(x{self.factor:.3g}) between steps {self.step - 1} and {self.step}, where the update was "
            f"{self.ratio:.2g} of it; {why}"
        )


def _jumps(history: History) -> list[Jump]:
    """Changes of a matrix that its updates don't explain, by step, the largest of each step first.

    A change is beyond the update where |‖W'‖ - ‖W‖| > ‖ΔW‖. A smaller one is told by being unlike the changes of that
    matrix before and after, where few matrices changed in an unusual way at that step, and where matrices don't grow
    so violently that it is hidden.
    """
    by_place: dict[tuple[int, Place], Jump] = {}
    matrices = 0
    for norm, ratio in (("norm", "update_ratio"), ("norm_effective", "update_ratio_effective")):
        norms, ratios = history.measured(norm), history.measured(ratio)
        matrices = max(matrices, sum(series.layers for series in norms.values()))
        for role in (role for role in norms if role in ratios):
            for jump in _jumps_of(history, role, norms[role], ratios[role]):
                key = jump.step, jump.place
                if key not in by_place or not by_place[key].beyond:
                    by_place[key] = jump
    beyond_alone = history.once(growth).factor > VIOLENT
    jumps = []
    order = sorted(by_place.values(), key=lambda jump: jump.step)
    for _, group in itertools.groupby(order, key=lambda jump: jump.step):
        together = list(group)
        if beyond_alone or len(together) > max(2, FEW * matrices):
            together = [jump for jump in together if jump.beyond]
        jumps += sorted(together, key=lambda jump: -jump.size)
    return jumps


def _jumps_of(history: History, role: str, norms: Series, ratios: Series) -> Iterator[Jump]:
    steps, at, in_ratios = np.intersect1d(norms.steps[:-1], ratios.steps, return_indices=True)
    before, after, ratio = norms.values[at], norms.values[at + 1], ratios.values[in_ratios]
    follows = (norms.steps[at + 1] == steps + 1) & ~np.isin(steps + 1, list(history.seams))
    known = follows[:, None] & (before > 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        change = np.where(known, np.log(after / before), np.nan)
        moved = np.abs(after - before) / before
    judged = known & (after > before) if role in history.shrunk else known
    beyond = judged & (moved > BEYOND * ratio + LEAST_CHANGE)
    candidate = judged & (moved > WITHIN * ratio + LEAST_CHANGE)
    rows = np.flatnonzero(candidate.any(axis=1))
    unusual = candidate[rows] & _unlike_others(change, ratio, rows)
    for row, layer in np.argwhere(unusual | beyond[rows]):
        yield Jump(
            step=int(steps[rows[row]]) + 1,
            place=(role, place_in_stack(role, int(layer))),
            before=float(before[rows[row], layer]),
            after=float(after[rows[row], layer]),
            ratio=float(ratio[rows[row], layer]),
            beyond=bool(beyond[rows[row], layer]),
        )


def _unlike_others(
    change: Float[np.ndarray, "n layers"], ratio: Float[np.ndarray, "n layers"], rows: np.ndarray
) -> Bool[np.ndarray, "rows layers"]:
    """Whether changes of log ‖W‖ are unlike those before while the next change is like them, as after an intervention.

    An optimizer that begins to take larger steps goes on with them.
    """
    center, spread = usual(change, rows, WINDOW, LEAST_KNOWN)
    floor = np.maximum(0.01 * ratio[rows], 1e-4)
    following = np.concatenate([change[1:], np.full_like(change[:1], np.nan)])[rows]
    with np.errstate(invalid="ignore"):
        off = np.abs(change[rows] - center)
        return (off > UNUSUAL * np.maximum(spread, floor)) & (np.abs(following - center) < 0.5 * off)


# -- before the first step


@dataclasses.dataclass(frozen=True)
class OffScale:
    """A matrix that began with `factor` times the norm that it was expected to have."""

    place: Place
    factor: float
    expected: str

    @property
    def size(self) -> float:
        return abs(math.log(self.factor)) if self.factor > 0 else math.inf

    def __str__(self) -> str:
        return f"{named(*self.place)} began with {self.factor:.3g} times the norm {self.expected}"


def off_initial_scale(history: History) -> list[OffScale]:
    """Matrices that began at another scale than their initialization gives, or than other layers did; largest first."""
    off = []
    for role, series in history.measured("norm_effective").items():
        if series.steps[0] != 1:
            continue
        expected, tolerance, what = _expected_norm(series, history.table.get(role))
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = series.values[0] / expected
            columns = np.flatnonzero(np.abs(np.log(factors)) > tolerance)
        off += [OffScale((role, place_in_stack(role, int(each))), float(factors[each]), what) for each in columns]
    return sorted(off, key=lambda each: -each.size)


def _expected_norm(series: Series, row: Row | None) -> tuple[np.ndarray, float, str]:
    """The norm at initialization, the largest usual |log| of a norm's ratio to it, and words for its origin."""
    if row is not None and row.std is not None and np.all(np.asarray(row.std) > 0):
        size = row.fan_in * row.fan_out
        expected = np.broadcast_to(np.asarray(row.std, float) * math.sqrt(size), (series.layers,))
        return expected, 0.01 + BY_CHANCE / math.sqrt(2 * size), "that its initial scale gives"
    median = float(np.median(series.values[0]))
    if series.layers < 3 or not 0 < median < math.inf:
        return np.full(series.layers, np.nan), math.inf, ""
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = float(np.median(np.abs(np.log(series.values[0] / median))))
    return np.full(series.layers, median), 0.05 + BY_LAYER * spread, "that the median layer has"
