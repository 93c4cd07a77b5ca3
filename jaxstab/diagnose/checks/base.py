"""What a check sees, and how breaks of an identity are taken together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from jaxstab.diagnose.history import Series
from jaxstab.diagnose.place import Place

GAP = 10  # steps between two breaks that are one event: chosen; a fault that comes back sooner is one fault


@dataclasses.dataclass(frozen=True)
class Break:
    """An identity of one stored parameter that didn't hold.

    Attributes:
      step: the first step that began with what was wrong.
      place: the parameter.
      size: by how much, of what was there; it ranks breaks of one step.
      sentence: what was measured.
    """

    step: int
    place: Place
    size: float
    sentence: str


@dataclasses.dataclass(frozen=True)
class Event:
    """Breaks that belong together: those of the first step, the largest first, and all steps that they go on for."""

    first: int
    last: int
    breaks: tuple[Break, ...]
    steps: int

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(each.place for each in self.breaks)


def together(breaks: Iterable[Break]) -> list[Event]:
    """Breaks with at most GAP steps between them, as events."""
    groups: list[list[Break]] = []
    for each in sorted(breaks, key=lambda each: (each.step, -each.size)):
        if not groups or each.step - groups[-1][-1].step > GAP:
            groups.append([])
        groups[-1].append(each)
    return [
        Event(
            first=group[0].step,
            last=group[-1].step,
            breaks=tuple(each for each in group if each.step == group[0].step),
            steps=len({each.step for each in group}),
        )
        for group in groups
    ]


def consecutive(first: Series, second: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The steps t for which `first` has t and `second` t + 1, and their values there, `[n, layers]`."""
    steps, at, following = np.intersect1d(first.steps, second.steps - 1, return_indices=True)
    return steps, first.values[at], second.values[following]


def at_steps(series: Series | None, steps: np.ndarray, layers: int) -> np.ndarray:
    """The values of a series at steps, `[n, layers]`; NaN where it has none."""
    values = np.full((len(steps), layers), np.nan)
    if series is not None and series.layers == layers:
        _, at, own = np.intersect1d(steps, series.steps, return_indices=True)
        values[at] = series.values[own]
    return values
