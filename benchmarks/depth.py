"""What depth does to each method: loss, gradient variance, the shortcut and the Jacobians over a grid of depths.

    python main.py compare --config=configs/ladder.py:rung=1 --config.model.width=32 --methods=... \\
        --vary=model.layers=6,12,24,48,96 --learning_rates=1e-3,3e-3,1e-2 --seeds=1,2,3 --workdir=runs/depth
    python benchmarks/depth.py --workdir=runs/depth --out=docs/results/depth

A method has its best rate at each depth, chosen by the first seed's loss on held-out text, and is told with it, as a
mean over the other seeds, or the first where there are none. How a number grows is its slope over the logarithm of the
depth: of the logarithm of the number, so that 1 is proportional, and for losses of the loss, in nats for each doubling.
The slope's 95% interval is by Student's t over all runs of the method at its best rates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import scipy.stats

sys.path.insert(0, str(Path(__file__).parents[1]))
matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.comparisons import rows_of, save, write
from jaxstab.compare.cells import directory_of
from jaxstab.compare.curves import COLORS
from jaxstab.compare.measured import gradient_variance
from jaxstab.compare.tables import Result, best_rate, variants
from jaxstab.logging import read_measurements

DEPTH = "model.layers"
LOSS = "validation_loss"
NUMBERS = {
    LOSS: "loss on held-out text",
    "first_gradient_variance": "gradient variance, mean over blocks, before the first step",
    "first_over_last": "gradient variance of the first block over the last's, before the first step",
    "gradient_variance": "gradient variance, mean over blocks, at the end",
    "shortcut_std": "std of the shortcut after the last block, at the end",
    "jacobian": "largest spectral norm of a block's Jacobian, at the end",
}


class Slope(NamedTuple):
    """Of a number over the logarithm of the depth, with its 95% interval, by n runs."""

    value: float
    low: float
    high: float
    n: int


def with_first(row: Result, directory: Path) -> Result:
    """A run's row with its gradient variance before the first step, where the run's directory is there."""
    _, variance = gradient_variance(read_measurements(directory) if directory.is_dir() else {})
    if not len(variance):
        return row
    first = variance[0]
    return {**row, "first_gradient_variance": float(first.mean()), "first_over_last": float(first[0] / first[-1])}


def at_best_rates(rows: Sequence[Result], method: str) -> list[Result]:
    """The runs of a method that count: at each depth those at the rate that its first seed chose, without that seed."""
    runs = []
    for variant in variants([row for row in rows if row["method"] == method]):
        own = [row for row in rows if row["variant"] == variant]
        first = min(row["seed"] for row in own)
        rate = best_rate([row for row in own if row["seed"] == first], variant, LOSS)
        at_rate = [row for row in own if row["learning_rate"] == rate]
        runs += [row for row in at_rate if row["seed"] != first] or at_rate
    return runs


def slope(runs: Sequence[Result], number: str) -> Slope:
    """How a number grows with depth."""
    points = [(np.log2(row[DEPTH]), row[number]) for row in runs if number in row and row[number] > 0]
    if len(points) < 3:
        return Slope(np.nan, np.nan, np.nan, len(points))
    depths, values = np.array(points, float).T
    fit = scipy.stats.linregress(depths, values if number == LOSS else np.log2(values))
    half = fit.stderr * scipy.stats.t.ppf(0.975, len(points) - 2)
    return Slope(float(fit.slope), float(fit.slope - half), float(fit.slope + half), len(points))


def means(runs: Sequence[Result], number: str) -> dict[int, float]:
    """{depth: the mean of a number over its runs}."""
    depths = sorted({row[DEPTH] for row in runs if number in row})
    return {depth: float(np.mean([row[number] for row in runs if row[DEPTH] == depth])) for depth in depths}


def markdown(rows: Sequence[Result], number: str) -> str:
    """A number over depth, a row a method."""
    depths = sorted({row[DEPTH] for row in rows})
    lines = [
        f"| {NUMBERS[number]} | {' | '.join(map(str, depths))} | slope [95%] | runs |",
        "|---" * (len(depths) + 3) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        runs = at_best_rates(rows, method)
        values, grows = means(runs, number), slope(runs, number)
        told = (f"{values[depth]:.4g}" if depth in values else "" for depth in depths)
        lines.append(
            f"| {method} | {' | '.join(told)} | {grows.value:.2f} [{grows.low:.2f}, {grows.high:.2f}] | {grows.n} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Result], measured: Sequence[str], path: Path) -> None:
    """These numbers over depth."""
    across = min(len(measured), 3)
    down = -(-len(measured) // across)
    figure, axes = plt.subplots(down, across, figsize=(4 * across, 3.2 * down), layout="constrained", squeeze=False)
    for axis, number in zip(axes.flat, measured, strict=False):
        for place, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            values = means(at_best_rates(rows, method), number)
            style = {"color": COLORS[place % len(COLORS)], "marker": "osv^Dx*P"[place % 8], "label": method}
            axis.plot(list(values), list(values.values()), **style)
        axis.set_xscale("log", base=2)
        axis.set_yscale("linear" if number == LOSS else "log")
        axis.set_xlabel("blocks")
        axis.set_title(NUMBERS[number].replace(", ", ",\n", 1), fontsize=9)
    axes[0, 0].legend(fontsize=7)
    save(figure, path)


def main() -> None:
    """Reads the rows of a comparison over depths, and writes tables and a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="of a comparison with --vary=model.layers=...")
    parser.add_argument("--out", required=True, type=Path, help="a directory for depth.md, depth.json and depth.svg")
    given = parser.parse_args()
    rows = [with_first(row, directory_of(given.workdir, row["cell"])) for row in rows_of(parser, [given.workdir])]
    if not all(DEPTH in row for row in rows):
        parser.error(f"{given.workdir} has no runs of several depths: compare with --vary={DEPTH}=6,12,24")
    measured = [number for number in NUMBERS if any(number in row for row in rows)]
    write(given.out, "depth", "\n".join(markdown(rows, number) for number in measured), rows)
    draw(rows, measured, given.out / "depth.svg")


if __name__ == "__main__":
    main()
