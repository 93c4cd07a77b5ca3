"""The figures of a comparison, as inline SVG, each with its numbers as a table.

Colours are Okabe and Ito's, which colour-blind readers tell apart, and dashes come after them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxstab.compare.cells import directory_of
from jaxstab.compare.measured import MLP, Series, gradient_variance, series_of
from jaxstab.compare.statistics import rank_correlation
from jaxstab.compare.tables import Result, Table, at, best_rate, by_rate, correlation, mean_losses, pairs_of, variants
from jaxstab.diagnose.figures import canvas, svg_of, thinned
from jaxstab.logging import in_force, read_measurements, read_metrics
from jaxstab.logging.run import METRICS

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", ":", "-.")
COLUMNS = 6  # of a table of a curve
FULL = "stability.measure=full"


class Case(NamedTuple):
    """A run that stands for its variant: the first seed at the variant's best rate."""

    name: str
    lines: list[dict[str, Any]]
    measured: dict[str, Series]

    def metric(self, name: str) -> Series:
        return series_of(self.lines, name)

    def last_block(self, name: str) -> Series:
        steps, values = self.measured.get(f"stability/{name}", (np.zeros(0, int), np.zeros((0, 1))))
        return steps, values[:, -1:]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure, what it shows, and its numbers; `missing` says what wasn't measured, where it is empty."""

    title: str
    caption: str
    svg: str = ""
    numbers: tuple[Table, ...] = ()
    missing: str = ""


def cases_of(rows: Sequence[Result], loss: str, workdir: Path) -> list[Case]:
    """The runs that curves are drawn of."""
    chosen = []
    for variant in variants(rows):
        rate = best_rate(rows, variant, loss)
        first = min(at(rows, variant, rate), key=lambda row: row["seed"])
        directory = directory_of(workdir, first["cell"])
        lines = in_force(read_metrics(directory / METRICS))
        chosen.append(Case(f"{variant}, {rate:g}", lines, read_measurements(directory)))
    return chosen


def figures(rows: Sequence[Result], loss: str, workdir: Path) -> list[Figure]:
    """All figures of a comparison."""
    cases = cases_of(rows, loss, workdir)
    return [loss_against_rate(rows, loss), *(each(cases) for each in CURVES), tev_and_variance(rows, cases)]


def loss_against_rate(rows: Sequence[Result], loss: str) -> Figure:
    """The mean loss of every variant over the rates; a rate at which a run diverged has no point."""
    with canvas() as figure:
        axis = figure.subplots()
        for variant, style in zip(variants(rows), _styles(), strict=False):
            means = mean_losses(rows, variant, loss)
            rates = [rate for rate in sorted(means) if np.isfinite(means[rate])]
            axis.plot(rates, [means[rate] for rate in rates], marker="o", markersize=3, label=variant, **style)
        axis.set(xscale="log", xlabel="peak learning rate", ylabel=loss)
        _legend(figure, axis)
        caption = "Means over seeds; a rate at which a run diverged has no point."
        return Figure("Loss against learning rate", caption, svg_of(figure), (by_rate(rows, loss),))


def curves(
    title: str, caption: str, panels: dict[str, Callable[[Case], Series]], needs: str = "", log: bool = True
) -> Callable[[Sequence[Case]], Figure]:
    """A figure of a panel for each series of a run, and a line for each run."""

    def draw(cases: Sequence[Case]) -> Figure:
        series = {label: {case.name: panel(case) for case in cases} for label, panel in panels.items()}
        if not any(len(steps) for each in series.values() for steps, _ in each.values()):
            return Figure(title, caption, missing=f"not measured: it takes {needs}")
        with canvas() as figure:
            axes = figure.subplots(1, len(panels), squeeze=False)[0]
            for axis, (label, by_case) in zip(axes, series.items(), strict=True):
                for (name, (steps, values)), style in zip(by_case.items(), _styles(), strict=False):
                    axis.plot(*thinned(steps, _positive(values[:, 0]) if log else values[:, 0]), label=name, **style)
                axis.set(xlabel="step", ylabel=label, yscale="log" if log else "linear")
            _legend(figure, axes[0])
            return Figure(title, caption, svg_of(figure), (_numbers(title, series),))

    return draw


def variance_by_depth(cases: Sequence[Case]) -> Figure:
    """The variance of the gradient in every block, at the last full measurement."""
    title, caption = (
        "Gradient variance against depth",
        "As Figure 2 of Chung et al. 2024: the variance over micro-batches, mean of a block's matrices, at the end.",
    )
    at_end = {case.name: values[-1] for case in cases if len(values := gradient_variance(case.measured)[1])}
    if not at_end:
        return Figure(title, caption, missing=f"not measured: it takes {FULL}")
    with canvas() as figure:
        axis = figure.subplots()
        for (name, values), style in zip(at_end.items(), _styles(), strict=False):
            axis.plot(np.arange(1, len(values) + 1), _positive(values), marker="o", markersize=3, label=name, **style)
        axis.set(xlabel="block", ylabel="gradient variance", yscale="log")
        _legend(figure, axis)
        blocks = _spread(max(map(len, at_end.values())))
        body = [(name, *(f"{v[b]:.3g}" if b < len(v) else "" for b in blocks)) for name, v in at_end.items()]
        head = ("method, rate", *(f"block {block + 1}" for block in blocks))
        return Figure(title, caption, svg_of(figure), (Table(title, head, tuple(body)),))


def tev_and_variance(rows: Sequence[Result], cases: Sequence[Case]) -> Figure:
    """TEV beside gradient variance over a run, and one against the other over all runs, with their rank correlation."""
    title, caption = (
        "TEV and gradient variance",
        "As Figure 3 of Chung et al. 2024: mean TEV of the embedding and gradient variance of each method at its best "
        "rate, and both at the end of every run of the grid.",
    )
    tev, variance = pairs_of(rows, "tev_embed_tokens", "gradient_variance")
    if not len(tev):
        return Figure(title, caption, missing=f"not measured: it takes {FULL}")
    series: dict[str, dict[str, Series]] = {
        "mean TEV": {case.name: case.metric("stability/tev_mean/embed_tokens") for case in cases},
        "gradient variance": {case.name: _mean_variance(case) for case in cases},
    }
    with canvas() as figure:
        *panels, right = figure.subplots(1, 3)
        for axis, (label, by_case) in zip(panels, series.items(), strict=True):
            for (name, (steps, values)), style in zip(by_case.items(), _styles(), strict=False):
                marker = "." if len(steps) < 30 else None
                axis.plot(*thinned(steps, _positive(values[:, 0])), label=name, marker=marker, **style)
            axis.set(xlabel="step", ylabel=label)
        panels[1].set(yscale="log")
        right.plot(tev, variance, "o", markersize=3, color=COLORS[0])
        right.set(xlabel="mean TEV at the end", ylabel="gradient variance at the end", xscale="log", yscale="log")
        _legend(figure, panels[0])
        below = f"Rank correlation over all runs: {correlation(rank_correlation(tev, variance))}."
        body = tuple(
            (row["cell"], f"{row['tev_embed_tokens']:.3g}", f"{row['gradient_variance']:.3g}")
            for row in rows
            if {"tev_embed_tokens", "gradient_variance"} <= set(row)
        )
        at_end = Table(f"{title} at the end", ("run", *series), body, below)
        return Figure(
            title, caption, svg_of(figure), (*(_numbers(name, {name: series[name]}) for name in series), at_end)
        )


def _mean_variance(case: Case) -> Series:
    """The gradient variance of a run, the mean over its blocks."""
    steps, values = gradient_variance(case.measured)
    return steps, values.mean(axis=1, keepdims=True)


def _of_the_mlp(name: str, label: str) -> dict[str, Callable[[Case], Series]]:
    return {f"{label} of {role}": lambda case, role=role: case.last_block(f"{name}/{role}") for role in MLP}  # type: ignore[misc]


CURVES: tuple[Callable[[Sequence[Case]], Figure], ...] = (
    curves(
        "Loss and gradient norm",
        "Each method at its best rate, its first seed, as the curves of Takase et al. 2025; the gradient by the "
        "effective weights, before clipping.",
        {
            "train/loss": lambda case: case.metric("train/loss"),
            "gradient norm": lambda case: case.metric("train/grad_norm_effective"),
        },
    ),
    curves(
        "Update ratios",
        "As Figure 1 of Nishida et al. 2024: ‖ΔW‖/‖W‖ of what is stored, in the last block.",
        _of_the_mlp("update_ratio", "‖ΔW‖/‖W‖"),
        "stability.measure=light",
    ),
    curves(
        "Norms",
        "As Figure 3 of Nishida et al. 2024, of the effective weights in the last block.",
        _of_the_mlp("norm_effective", "‖W‖"),
        "stability.measure=light",
    ),
    variance_by_depth,
)


def _numbers(title: str, series: dict[str, dict[str, Series]]) -> Table:
    """The values of curves at a few steps, evenly spaced over the longest."""
    longest = max((steps for each in series.values() for steps, _ in each.values()), key=len)
    chosen = [int(longest[place]) for place in _spread(len(longest))]
    body = [
        (label, name, *(_at(steps, values, step) for step in chosen))
        for label, by_case in series.items()
        for name, (steps, values) in by_case.items()
    ]
    return Table(title, ("", "method, rate", *(f"step {step}" for step in chosen)), tuple(body))


def _at(steps: np.ndarray, values: np.ndarray, step: int) -> str:
    places = np.flatnonzero(steps == step)
    return f"{values[places[0], 0]:.4g}" if len(places) else ""


def _spread(count: int) -> list[int]:
    """A few places of `count`, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(COLUMNS, count))})


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _styles() -> Iterator[dict[str, str]]:
    """A colour and a dash for each of up to 32 lines, then the same again."""
    return itertools.cycle({"color": color, "linestyle": line} for line in LINES for color in COLORS)


def _legend(figure: Any, axis: Any) -> None:
    """A line for each run, beside the panels, which are as high as that takes."""
    lines, labels = axis.get_legend_handles_labels()
    figure.set_size_inches(8.4, max(3.0, 0.4 + 0.17 * len(labels)))
    figure.legend(lines, labels, loc="outside right upper")
