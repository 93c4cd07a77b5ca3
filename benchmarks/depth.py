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
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import scipy.stats

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DEPTH = "model.layers"
LOSS = "validation_loss"
NUMBERS = {
    LOSS: "loss on held-out text",
    "gradient_variance": "gradient variance, mean over blocks, at the end",
    "shortcut_std": "std of the shortcut after the last block, at the end",
    "jacobian": "largest spectral norm of a block's Jacobian, at the end",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")

Row = Mapping[str, Any]


class Slope(NamedTuple):
    """Of a number over the logarithm of the depth, with its 95% interval, by n runs."""

    value: float
    low: float
    high: float
    n: int


def at_best_rates(rows: Sequence[Row], method: str) -> list[Row]:
    """The runs of a method that count: at each depth those at the rate that its first seed chose, without that seed."""
    runs = []
    for depth in sorted({row[DEPTH] for row in rows if row["method"] == method}):
        of_depth = [row for row in rows if row["method"] == method and row[DEPTH] == depth]
        first = min(row["seed"] for row in of_depth)
        rate = min((row.get(LOSS, np.inf), row["learning_rate"]) for row in of_depth if row["seed"] == first)[1]
        at_rate = [row for row in of_depth if row["learning_rate"] == rate]
        runs += [row for row in at_rate if row["seed"] != first] or at_rate
    return runs


def slope(runs: Sequence[Row], number: str) -> Slope:
    """How a number grows with depth."""
    points = [(np.log2(row[DEPTH]), row[number]) for row in runs if number in row and row[number] > 0]
    if len(points) < 3:
        return Slope(np.nan, np.nan, np.nan, len(points))
    depths, values = np.array(points, float).T
    fit = scipy.stats.linregress(depths, values if number == LOSS else np.log2(values))
    half = fit.stderr * scipy.stats.t.ppf(0.975, len(points) - 2)
    return Slope(float(fit.slope), float(fit.slope - half), float(fit.slope + half), len(points))


def means(runs: Sequence[Row], number: str) -> dict[int, float]:
    """{depth: the mean of a number over its runs}."""
    depths = sorted({row[DEPTH] for row in runs if number in row})
    return {depth: float(np.mean([row[number] for row in runs if row[DEPTH] == depth])) for depth in depths}


def markdown(rows: Sequence[Row], number: str) -> str:
    """A number over depth, a row a method."""
    depths = sorted({row[DEPTH] for row in rows})
    lines = [
        f"| {NUMBERS[number]} | {' | '.join(map(str, depths))} | slope [95%] | runs |",
        "|---" * (len(depths) + 3) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        runs = at_best_rates(rows, method)
        values, grows = means(runs, number), slope(runs, number)
        told = (f"{values[depth]:.3g}" if depth in values else "" for depth in depths)
        lines.append(
            f"| {method} | {' | '.join(told)} | {grows.value:.2f} [{grows.low:.2f}, {grows.high:.2f}] | {grows.n} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """All numbers over depth."""
    measured = [number for number in NUMBERS if any(number in row for row in rows)]
    figure, axes = plt.subplots(1, len(measured), figsize=(4 * len(measured), 3.4), layout="constrained", squeeze=False)
    for axis, number in zip(axes[0], measured, strict=True):
        for place, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            values = means(at_best_rates(rows, method), number)
            style = {"color": COLOURS[place % len(COLOURS)], "marker": "osv^Dx*P"[place % 8], "label": method}
            axis.plot(list(values), list(values.values()), **style)
        axis.set_xscale("log", base=2)
        axis.set_yscale("linear" if number == LOSS else "log")
        axis.set_xlabel("blocks")
        axis.set_title(NUMBERS[number].replace(", ", ",\n", 1), fontsize=9)
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Reads the rows of a comparison over depths, and writes tables and a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="of a comparison with --vary=model.layers=...")
    parser.add_argument("--out", required=True, type=Path, help="a directory for depth.md and depth.svg")
    given = parser.parse_args()
    path = given.workdir / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if not rows or DEPTH not in rows[0]:
        parser.error(f"{path} has no runs of several depths: compare with --vary={DEPTH}=6,12,24")
    given.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(markdown(rows, number) for number in NUMBERS)
    (given.out / "depth.md").write_text(text)
    draw(rows, given.out / "depth.svg")
    print(text)


if __name__ == "__main__":
    main()
