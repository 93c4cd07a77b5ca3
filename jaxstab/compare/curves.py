"""The figures of a comparison, as inline SVG. Colours are Okabe and Ito's, which colour-blind readers tell apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab.compare.cells import Row
from jaxstab.compare.tables import best_rate, mean_losses, variants
from jaxstab.diagnose.figures import canvas, svg_of, thinned
from jaxstab.logging import in_force, read_metrics
from jaxstab.logging.run import METRICS

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", ":", "-.")


def _styles() -> Iterator[dict[str, str]]:
    """A colour and a dash for each of up to 32 lines, then the same again."""
    return itertools.cycle({"color": color, "linestyle": line} for line in LINES for color in COLORS)


def loss_against_rate(rows: Sequence[Row], loss: str) -> str:
    """The mean loss of every variant over the rates; a rate at which a run diverged has no point."""
    with canvas() as figure:
        axis = figure.subplots()
        for variant, style in zip(variants(rows), _styles(), strict=False):
            means = mean_losses(rows, variant, loss)
            rates = [rate for rate in sorted(means) if np.isfinite(means[rate])]
            axis.plot(rates, [means[rate] for rate in rates], marker="o", markersize=3, label=variant, **style)
        axis.set(xscale="log", xlabel="peak learning rate", ylabel=loss)
        _legend(figure, axis)
        return svg_of(figure)


def loss_curves(rows: Sequence[Row], loss: str, workdir: Path) -> str:
    """The training loss of every variant at its best rate, of its first seed."""
    with canvas() as figure:
        axis = figure.subplots()
        for variant, style in zip(variants(rows), _styles(), strict=False):
            rate = best_rate(rows, variant, loss)
            cell = next(r["cell"] for r in rows if (r["variant"], r["learning_rate"]) == (variant, rate))
            lines = in_force(read_metrics(workdir / "cells" / cell / METRICS))
            points = np.array([(line["step"], line["train/loss"]) for line in lines if "train/loss" in line])
            axis.plot(*thinned(points[:, 0], points[:, 1]), label=f"{variant}, {rate:g}", **style)
        axis.set(xlabel="step", ylabel="train/loss", yscale="log")
        _legend(figure, axis)
        return svg_of(figure)


def _legend(figure: Any, axis: Any) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
