"""What moved before a spike: which measurement of which matrix left its own range first."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats

from jaxstab.diagnose.history import History, Series, events, usual
from jaxstab.stability.definitions import DEFINITIONS, GRAD_NORM, LOSS

AHEAD = 20  # steps before a spike in which a measurement may have left its range
PAST = 64  # values before those, which are its range
FAR = 6.0  # robust standard deviations
CHANCE = 1e-6  # the chance of one more value like those before being so far out
SPIKES = ("OLMo 2", "SkipStep")  # whose events are looked into, winsorised or not
OWN_RULE = "the run's own rule"
MOST = 12

# What has a trend of its own is judged by its change from step to step.
TRENDING = ("norm", "norm_effective", "gate", "tev_mean", "tev_std")
EVERY_STEP = (
    *TRENDING,
    *("update_ratio", "update_ratio_effective", "grad_norm", "grad_norm_effective", "update_rms", "grad_rms_over_eps"),
    *("max_attention_logit", "attention_entropy", "max_activation", "shortcut_std", "spectral_norm"),
)


@dataclasses.dataclass(frozen=True)
class Moved:
    """A measurement that left its own range.

    Attributes:
      measurement, part: such as "update_ratio" and "down_proj"; the part is a role, a head or a branch.
      layer: from 0; None for what has no layers.
      step: the first step out of range.
      ahead: how many steps before the spike that is.
      deviation: robust standard deviations from what was usual, at its farthest until the spike.
    """

    measurement: str
    part: str
    layer: int | None
    step: int
    ahead: int
    deviation: float

    def __str__(self) -> str:
        layer = "" if self.layer is None else f", layer {self.layer}"
        when = f"{self.ahead} steps ahead" if self.ahead else "at the same step"
        return f"{self.measurement} of {self.part}{layer}: {when} (step {self.step}), {self.deviation:+.0f} SD"


@dataclasses.dataclass(frozen=True)
class Spike:
    """Steps that belong to one spike, by which definitions, and what moved before it, earliest first."""

    first: int
    last: int
    by: tuple[str, ...]
    moved: tuple[Moved, ...]


def flagged(history: History) -> dict[str, np.ndarray]:
    """{"OLMo 2 on loss": flagged steps}, for every definition and metric that the run has, and for its own rule."""
    flags = {}
    for name, definition in DEFINITIONS.items():
        for metric in definition.of:
            steps, values = history.scalar(metric)
            if len(steps):
                flags[f"{name} on {metric.removeprefix('train/')}"] = steps[definition.flags(values)]
    steps, values = history.scalar("train/spike")
    if len(steps):
        flags[OWN_RULE] = steps[values > 0]
    return flags


def spikes(history: History, flags: dict[str, np.ndarray]) -> list[Spike]:
    """The spikes of a run by OLMo 2, SkipStep and the run's own rule, neighbouring steps joined, given `flagged`.

    Of more than 12, the first, and those with most definitions.
    """
    steps, _ = history.scalar(LOSS)
    looked_into = [at for name, at in flags.items() if name.startswith((*SPIKES, OWN_RULE))]
    any_of = np.isin(steps, np.concatenate([*looked_into, np.zeros(0, np.int64)]))
    spans = []
    for first, last in events(any_of, steps):
        by = tuple(name for name, at in flags.items() if np.any((at >= first) & (at <= last)))
        spans.append((first, last, by))
    chosen = sorted(sorted(spans, key=lambda span: (span is not spans[0], -len(span[2])))[:MOST])
    return [Spike(first, last, by, tuple(moved_before(history, first))) for first, last, by in chosen]


def moved_before(history: History, spike: int) -> list[Moved]:
    """What left its own range at most 20 steps before a spike, or in it; earliest first, then the farthest out.

    The range is that of the 64 values before: out of it is what lies beyond its ends by half its width, 6 robust
    standard deviations from its median, and farther from its mean than one more such value would by a chance of 1e-6
    (Student's t: few values tell little of a range), on two steps in a row, or on one by twice as far.
    """
    moved: list[Moved] = []
    for name, series in history.series.items():
        if name.startswith("stability/") and name.count("/") >= 2:
            _, measurement, part = name.split("/", 2)
            if measurement in EVERY_STEP:
                moved += _left(measurement, part, series, spike)
    for name in (GRAD_NORM, "train/update_norm", "train/log_z"):
        if name in history.series:
            moved += _left(name.removeprefix("train/"), "the whole model", history.series[name], spike)
    return sorted(moved, key=lambda each: (each.step, -abs(each.deviation)))


def _left(measurement: str, part: str, series: Series, spike: int) -> list[Moved]:
    end = int(np.searchsorted(series.steps, spike, side="right"))
    begin = int(np.searchsorted(series.steps, spike - AHEAD))
    first = max(0, begin - PAST - 1)
    if begin - first < 5 or end == begin:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(np.abs(series.values[first:end]))
        if measurement in TRENDING:
            values = np.diff(values, axis=0, prepend=np.nan)
    values = np.where(np.isfinite(values), values, np.nan)
    past, now = values[: begin - first], values[begin - first :]
    (center,), (spread,) = usual(values, np.array([len(past)]), PAST, 4)
    known = np.isfinite(center)
    if not known.any():
        return []
    past, now, center, spread = past[:, known], now[:, known], center[known], spread[known]
    low, high = np.nanmin(past, axis=0), np.nanmax(past, axis=0)
    margin = 0.5 * (high - low)
    count = np.isfinite(past).sum(axis=0)
    limit = stats.t.isf(CHANCE, count - 1) * np.nanstd(past, axis=0, ddof=1) * np.sqrt(1 + 1 / count)
    deviation = (now - center) / np.maximum(spread, 1e-4)
    out = ((now > high + margin) | (now < low - margin)) & (np.abs(deviation) > FAR)
    out &= np.abs(now - np.nanmean(past, axis=0)) > limit
    lasting = out & (np.concatenate([out[1:], out[-1:]]) | (np.abs(deviation) > 2 * FAR))
    moved = []
    for column in np.flatnonzero(lasting.any(axis=0)):
        at = int(lasting[:, column].argmax())
        step = int(series.steps[begin + at])
        farthest = deviation[np.nanargmax(np.abs(deviation[:, column])), column]
        layer = int(np.flatnonzero(known)[column]) if series.layers > 1 else None
        moved.append(Moved(measurement, part, layer, step, spike - step, float(farthest)))
    return moved
