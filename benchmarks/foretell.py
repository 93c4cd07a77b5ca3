"""Races the published precursors of a loss spike over the runs of a comparison, at equal false-alarm rates.

    python benchmarks/foretell.py --workdir=runs/ladder-1 --workdir=runs/ladder-2 --out=docs/results/foretell

A run's event is the first step whose loss isn't finite, or lies, with most of the 9 losses from it on, 0.5 nats above
the least median of any 9 before: a batch of odd text is none.
Every signal is asked over the `--horizon` steps before an event, and, for false alarms, over the same steps of every
run that had none: both have run as long and at the same place of the schedule. A window within `--horizon` steps of
such a run's end doesn't count, since an event might have followed. It is raced as it is (`level`: does it
stand high?) and as SkipStep's deviation from its own last values (`rise`: does it go up?), and alarms above a
threshold: that which a share `--rate` of the windows without an event exceed, in one half of the runs without. The
false-alarm rate is measured on the other half; then the halves change places.

A level tells rates of learning apart, which differ between runs with an event and without; a rise doesn't. `both norms`
is the lower of the rises of the gradient's norm and the update's.

Told for each: the threshold, the false-alarm rate, the share of events it warned of, and the steps of warning, 0 where
it didn't, with 95% intervals by resampling the runs with an event. Signals that full measurements alone have are as old
as the last of these. Critical sharpness and curvature are raced over runs with stability.instruments=curvature, the
largest eigenvalue over those with eigenvalue, and so on. What the warning of the run itself came to tells
benchmarks/foretold.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.comparisons import directories_of, write
from jaxstab.compare.measured import series_of
from jaxstab.compare.statistics import Estimate, estimate
from jaxstab.logging import in_force, read_measurements, read_metrics
from jaxstab.stability import spikes


def largest_size(values: np.ndarray, axis: int) -> np.ndarray:
    """The largest absolute value."""
    return np.max(np.abs(values), axis=axis)


RISE = 0.5  # nats, as in jaxstab/compare/cells.py
MEDIAN, WINDOW, LEAST = 9, 128, 16  # steps
# name: (full name or its beginning, what is taken of roles and layers, +1 where a high value warns and -1 where a low)
SIGNALS: dict[str, tuple[str, Callable[..., np.ndarray], int]] = {
    "loss (SkipStep)": ("train/loss", np.max, 1),
    "gradient norm (SkipStep)": ("train/grad_norm", np.max, 1),
    "gradient norm, effective": ("train/grad_norm_effective", np.max, 1),
    "update norm": ("train/update_norm", np.max, 1),
    "log Z": ("train/log_z", np.max, 1),
    "TEV of the embedding": ("stability/tev_mean/embed_tokens", np.max, 1),
    "TEV of lm_head": ("stability/tev_mean/lm_head", np.max, 1),
    "update ratio": ("stability/update_ratio_effective/", np.max, 1),
    "gradient over Adam's eps": ("stability/grad_rms_over_eps/", np.min, -1),
    "attention logit": ("stability/max_attention_logit/", np.max, 1),
    "attention entropy": ("stability/attention_entropy/", np.min, -1),
    "stable rank": ("stability/stable_rank/", np.min, -1),
    "spectral norm": ("stability/spectral_norm/", np.max, 1),
    "Jacobian": ("stability/jacobian/", np.max, 1),
    "gradient variance": ("stability/gradient_variance/", np.mean, 1),
    "gradient noise scale": ("stability/gradient_noise_scale", np.max, 1),
    "critical step": ("stability/critical_step", np.min, -1),
    "critical sharpness": ("stability/critical_sharpness", np.max, 1),
    "curvature along the gradient": ("stability/curvature/gradient", np.max, 1),
    "curvature along the update": ("stability/curvature/update", np.max, 1),
    "preconditioned curvature": ("stability/curvature/preconditioned", np.max, 1),
    "preconditioned eigenvalue": ("stability/preconditioned_eigenvalue", np.max, 1),
    "entropy of the change of W_qk": ("stability/qk_update_entropy/", np.min, -1),
    "alignment of Jacobians": ("stability/jacobian_alignment", np.max, 1),
    "stable rank of Jacobians": ("stability/jacobian_stable_rank", np.min, -1),
    "gates of queries over keys": ("stability/gate_log_ratio", largest_size, 1),
    "largest activation": ("stability/max_activation", np.max, 1),
}
WARNING = "stability/foretold"


class Run(NamedTuple):
    """A run: the step of its event, None where it had none, and the signals after every step, {name: values [n]}."""

    name: str
    event: int | None
    signals: Mapping[str, np.ndarray]


class Result(NamedTuple):
    """What a signal came to in the race."""

    signal: str
    form: str
    threshold: float
    false_alarms: float
    warned: Estimate
    steps: Estimate


def event_of(losses: np.ndarray) -> int | None:
    """The place in a series of losses at which the run left its course; None where it didn't."""
    least = np.inf
    for place, loss in enumerate(losses):
        if not np.isfinite(loss):
            return place
        if loss > least + RISE and np.sum(losses[place : place + MEDIAN] > least + RISE) > MEDIAN / 2:
            return place
        if place + 1 >= MEDIAN:
            least = min(least, float(np.median(losses[place + 1 - MEDIAN : place + 1])))
    return None


def read(directory: Path) -> Run:
    """A run from its workdir."""
    lines = in_force(read_metrics(directory / "metrics.jsonl"))
    training = [line for line in lines if "train/loss" in line]
    steps, losses = series_of(training, "train/loss")
    losses = np.where(series_of(training, "train/finite")[1] > 0, losses, np.inf)[:, 0]  # a gradient's counts too
    measured = read_measurements(directory)
    series = {}
    for name, (prefix, reduce, sign) in SIGNALS.items():
        vectors = [each for key, each in measured.items() if key.startswith(prefix)]
        series[name] = sign * over_steps(steps, vectors or [series_of(training, prefix)], reduce)
    z_nQ = np.hstack([series_of(training, f"stability/deviation/{name}")[1] for name in spikes.QUANTITIES])
    series[WARNING] = np.asarray(jax.vmap(spikes.foretold)(z_nQ), float)  # older runs don't tell it
    return Run(str(directory), event_of(losses), series)


def over_steps(steps: np.ndarray, series: Sequence[tuple[np.ndarray, np.ndarray]], reduce: Callable) -> np.ndarray:
    """One value a step: the last that was measured up to it, over all roles and layers; NaN before the first."""
    at, values = series[0][0], np.concatenate([values for _, values in series if len(values) == len(series[0][1])], 1)
    if not len(at):
        return np.full(len(steps), np.nan)
    last = np.searchsorted(at, steps, side="right") - 1
    return np.where(last >= 0, reduce(values, axis=1)[np.maximum(last, 0)], np.nan)


def level(values: np.ndarray) -> np.ndarray:
    """A signal as it is."""
    return values


def rise(values: np.ndarray) -> np.ndarray:
    """Standard deviations above the mean of its own last values; one that stands for many steps counts once."""
    new = np.flatnonzero(np.isfinite(values) & np.concatenate([[True], values[1:] != values[:-1]]))
    told = np.full(len(values), np.nan)
    for number, place in enumerate(new):
        before = values[new[max(0, number - WINDOW) : number]]
        if len(before) >= min(LEAST, len(new) // 2) and len(before) > 1:
            end = new[number + 1] if number + 1 < len(new) else len(values)
            told[place:end] = (values[place] - before.mean()) / (before.std() + 1e-6 * abs(before.mean()) + 1e-30)
    return told


FORMS = {"level": level, "rise": rise}
BOTH = "both norms"


def told_of(run: Run, signal: str, form: str) -> np.ndarray:
    """A signal of a run in one of the forms."""
    if signal == BOTH:
        return np.minimum(rise(run.signals["gradient norm (SkipStep)"]), rise(run.signals["update norm"]))
    return FORMS[form](run.signals[signal])


def race(runs: Sequence[Run], horizon: int, rate: float) -> list[Result]:
    """All signals in both forms, the one that warns of most first."""
    with_event = [run for run in runs if run.event is not None and run.event > 1]
    without = [run for run in runs if run.event is None]
    measured = [name for name in SIGNALS if any(np.isfinite(run.signals[name]).any() for run in with_event)]
    racers = [(name, form) for name in measured for form in FORMS] + [(BOTH, "rise")]
    results = [_raced(*racer, with_event, without, horizon, rate) for racer in racers]
    return sorted(results, key=lambda each: (-each.warned.mean, -each.steps.mean))


def _raced(
    signal: str, form: str, with_event: Sequence[Run], without: Sequence[Run], horizon: int, rate: float
) -> Result:
    told = {run.name: told_of(run, signal, form) for run in (*with_event, *without)}
    halves = without[::2], without[1::2]
    false, warnings, thresholds = [], [], []
    for tuning, judging in (halves, halves[::-1]):
        threshold = _threshold([told[run.name] for run in tuning], [run.event for run in with_event], horizon, rate)
        thresholds.append(threshold)
        false += [
            steps_of_warning(told[run.name], event.event, horizon, threshold) > 0
            for run in judging
            for event in with_event
            if _is_known(told[run.name], event.event, horizon)
        ]
        warnings.append([steps_of_warning(told[run.name], run.event, horizon, threshold) for run in with_event])
    steps = np.mean(warnings, axis=0)
    warned = estimate(np.mean(np.array(warnings) > 0, 0))
    return Result(signal, form, float(np.mean(thresholds)), float(np.mean(false)), warned, estimate(steps))


def _threshold(values: Sequence[np.ndarray], events: Sequence[int | None], horizon: int, rate: float) -> float:
    """What a share `rate` of the windows before these steps exceed."""
    highest = [_highest(each, event, horizon) for each in values for event in events if _is_known(each, event, horizon)]
    return float(np.quantile(highest, 1 - rate, method="higher"))


def _is_known(values: np.ndarray, event: int | None, horizon: int) -> bool:
    """Whether a run goes on long enough after a window for it to be known that no event followed."""
    return event is not None and event + horizon <= len(values)


def _window(event: int | None, horizon: int) -> slice:
    assert event is not None
    return slice(max(0, event - horizon), event)


def _highest(values: np.ndarray, event: int | None, horizon: int) -> float:
    window = values[_window(event, horizon)]
    return float(np.max(window, initial=-np.inf, where=np.isfinite(window)))


def steps_of_warning(values: np.ndarray, event: int | None, horizon: int, threshold: float) -> int:
    """Steps from the first alarm in the window before an event to it; 0 where there was none."""
    window = values[_window(event, horizon)]
    alarms = np.flatnonzero(np.where(np.isfinite(window), window, -np.inf) > threshold)
    return len(window) - int(alarms[0]) if len(alarms) else 0


def markdown(results: Sequence[Result], runs: Sequence[Run], horizon: int, rate: float) -> str:
    """The race as a table."""
    events = sum(run.event is not None for run in runs)
    lines = [
        f"{events} runs with an event, {len(runs) - events} without; windows of {horizon} steps; false alarms set to "
        f"{rate:.0%} of them.",
        "",
        "| signal | form | threshold | false alarms | warned of [95%] | steps of warning [95%] |",
        "|---|---|---|---|---|---|",
    ]
    for each in results:
        warned, steps = each.warned, each.steps
        lines.append(
            f"| {each.signal} | {each.form} | {each.threshold:.3g} | {each.false_alarms:.1%} | "
            f"{warned.mean:.0%} [{warned.low:.0%}, {warned.high:.0%}] | "
            f"{steps.mean:.1f} [{steps.low:.1f}, {steps.high:.1f}] |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Reads the cells of comparisons, races, and writes the table and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", action="append", required=True, type=Path, help="of a comparison; several go")
    parser.add_argument("--out", required=True, type=Path, help="a directory for foretell.md and foretell.json")
    parser.add_argument("--horizon", default=50, type=int, help="steps before an event in which an alarm is a warning")
    parser.add_argument("--rate", default=0.05, type=float, help="share of windows without an event that may alarm")
    given = parser.parse_args()
    runs = [read(directory) for workdir in given.workdir for directory in directories_of(workdir)]
    events = [run.event for run in runs if run.event is not None]
    lengths = [len(run.signals["loss (SkipStep)"]) for run in runs if run.event is None]
    if not events or sum(length >= min(events) + given.horizon for length in lengths) < 4:
        parser.error(
            f"{len(events)} of {len(runs)} runs have an event; a race takes one, and four runs that go on without for "
            f"{given.horizon} steps after it"
        )
    results = race(runs, given.horizon, given.rate)
    text = markdown(results, runs, given.horizon, given.rate)
    write(given.out, "foretell", text, [each._asdict() for each in results])


if __name__ == "__main__":
    main()
