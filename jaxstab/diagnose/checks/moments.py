"""Moments are what their decay and the gradients make them: an optimizer's state that was lost or corrupted.

mu' = b1 mu + (1 - b1) g and nu' = b2 nu + (1 - b2) g² (Kingma and Ba 2015, Algorithm 1), of which every rule here keeps
the first, and most the second. Both are linear, so that they hold of sketches and of means. Which decay rate a rule
gives a parameter the run itself shows. A step that is skipped changes neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxstab.diagnose.checks.base import Break, at_steps, consecutive
from jaxstab.diagnose.history import History
from jaxstab.diagnose.place import Place, named, place_in_stack

# Of ‖mu‖, and of mean(nu): measured, sums of float32 are off by 2e-7 of that, and by some 3e-6 for large matrices. A
# sketch is a random share of what changed, and few of those are too small for a tenth of mu to show.
ROUNDING = 3e-5


def broken_moments(history: History) -> list[Break]:
    """Every parameter and step that begins with another moment than the step before makes it, by step."""
    if history.config is None:
        return []
    breaks = [each for name in history.sketches("mu") for each in _first(history, name)]
    breaks += [each for name in history.measured("nu_mean") for each in _second(history, name)]
    largest: dict[tuple[int, Place], Break] = {}
    for each in sorted(breaks, key=lambda each: each.size):
        largest[each.step, each.place] = each
    return sorted(largest.values(), key=lambda each: (each.step, -each.size))


def _first(history: History, name: str) -> Iterator[Break]:
    mu, gradient, norms = (
        of.get(name) for of in (history.sketches("mu"), history.sketches("gradient"), history.measured("mu_norm"))
    )
    if mu is None or gradient is None or norms is None or name not in history.stored:
        return
    steps, then, now = consecutive(mu, mu)
    as_decayed = ~np.isin(steps, _restarts(history))
    steps, then, now = steps[as_decayed], then[as_decayed], now[as_decayed]
    g = at_steps(gradient, steps, mu.layers) / history.stored[name].eps
    before, after = (at_steps(norms, at, mu.layers) for at in (steps, steps + 1))
    given = _Given(then, now, g, _taken(history, steps))
    yield from _breaks(steps, name, "first moment", given, before + after, (before, after))


def _second(history: History, name: str) -> Iterator[Break]:
    nu, rms = history.measured("nu_mean")[name], history.measured("grad_rms_over_eps").get(name)
    if rms is None or history.config is None:
        return
    steps, then, now = consecutive(nu, nu)
    square = (at_steps(rms, steps, nu.layers) * history.config.optimizer.eps) ** 2
    given = _Given(then, now, square, _taken(history, steps))
    yield from _breaks(steps, name, "second moment", given, np.abs(then) + np.abs(now), (then, now))


class _Given(NamedTuple):
    """A moment before and after steps, what each added to it, `[n, layers]`, and whether it did, `[n, 1]`."""

    then: np.ndarray
    now: np.ndarray
    added: np.ndarray
    taken: np.ndarray

    @property
    def decay(self) -> float:
        """The decay rate b that the run itself shows: the median of (m' - g) / (m - g); NaN where there is none."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            rates = np.where(self.taken, (self.now - self.added) / (self.then - self.added), np.nan)
        rates = rates[np.isfinite(rates)]
        return float(np.median(rates)) if len(rates) else math.nan

    @property
    def expected(self) -> np.ndarray:
        b = self.decay
        with np.errstate(invalid="ignore", over="ignore"):
            return np.where(self.taken, b * self.then + (1 - b) * self.added, self.then)


def _taken(history: History, steps: np.ndarray) -> np.ndarray:
    at, skipped = history.scalar("train/skipped")
    return ~np.isin(steps, at[skipped > 0])[:, None]


def _restarts(history: History) -> np.ndarray:
    """The steps after which moments were set to zero, as `optimizer.restart_above` asks."""
    at, count = history.scalar("train/restarted")
    return at[count > 0]


def _breaks(
    steps: np.ndarray,
    name: str,
    moment: str,
    given: _Given,
    scale: np.ndarray,
    told: tuple[np.ndarray, np.ndarray],
) -> Iterator[Break]:
    """Breaks where a moment is off by more than rounding of `scale`; `told` are sizes before and after.

    There are none where it is off at more than every other step: the rule makes its moments in another way.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(given.now - given.expected)
        scale = scale + (1 - given.decay) * np.abs(given.added)
        known = np.isfinite(off) & np.isfinite(scale)
        broken = (off > ROUNDING * scale) & known
    if broken.sum() > known.sum() / 2:
        return
    for i, layer in np.argwhere(broken):
        place = (name, place_in_stack(name, int(layer)))
        sentence = (
            f"the {moment} of {named(*place)} isn't at the beginning of step {steps[i] + 1} what the gradient of step "
            f"{steps[i]} makes it: it went from {told[0][i, layer]:.3g} to {told[1][i, layer]:.3g}, and is off by "
            f"{off[i, layer] / scale[i, layer]:.0%} of its size"
        )
        yield Break(int(steps[i]) + 1, place, float(off[i, layer] / scale[i, layer]), sentence)
