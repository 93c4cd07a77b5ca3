"""Does TEV foretell gradient variance and the loss at the end? Rank correlations over all runs, and over time.

    python benchmarks/tev.py --workdir=runs/ladder-1 --workdir=runs/depth-48 --out=docs/results/tev

Chung et al. 2024 offer the mean TEV as a proxy for gradient variance. Beside it stand what is cheaper: the gradient's
norm and the update's. Each is correlated with the gradient variance at the end (over micro-batches, and over entries,
since the paper doesn't say which), the loss at the end and whether the run diverged; over all runs, and within methods,
where the correlation is the mean of each method's own ranks: a proxy that only tells methods apart has none there.
Of the first seed it is taken over methods at each rate, too, since a rate moves both.
Over time it is each run's own correlation of a predictor with gradient variance over its full measurements, without
the first, as their Figure 3 has them, and the mean of these over runs. Intervals by resampling runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.comparisons import directories_of, rows_of, write
from jaxstab.compare.measured import Lines, Series, gradient_variance, series_of
from jaxstab.compare.statistics import Estimate, estimate, rank_correlation
from jaxstab.compare.tables import Result, correlation
from jaxstab.logging import in_force, read_measurements, read_metrics

TARGETS = ("gradient_variance", "gradient_entry_variance", "train_loss", "validation_loss", "diverged")

FEWEST = 10  # methods that a correlation at one rate takes
PREDICTORS = {  # by the name in a row of a comparison, that in the metrics of a run
    "tev_embed_tokens": "stability/tev_mean/embed_tokens",
    "tev_lm_head": "stability/tev_mean/lm_head",
    "grad_norm": "train/grad_norm",
    "grad_norm_effective": "train/grad_norm_effective",
    "update_norm": "train/update_norm",
    "log_z": "train/log_z",
}


def within(rows: Sequence[Result], name: str, by: str = "variant") -> np.ndarray:
    """The ranks of a number among the runs of its own method, from 0 to 1."""
    values, groups = np.array([row[name] for row in rows], float), np.array([row[by] for row in rows])
    ranks = np.zeros(len(rows))
    for group in set(groups):
        of_group = groups == group
        ranks[of_group] = (scipy.stats.rankdata(values[of_group]) - 0.5) / of_group.sum()
    return ranks


def over_time(lines: Lines, measured: Mapping[str, Series]) -> dict[str, float]:
    """A run's own rank correlation of each predictor with gradient variance, over its full measurements but the first.

    Empty where there are fewer than five.
    """
    steps, variance = gradient_variance(measured)
    if len(steps) < 6:
        return {}
    results = {}
    for predictor, name in PREDICTORS.items():
        at, values = series_of(lines, name)
        of_step = dict(zip(at.tolist(), values[:, 0].tolist(), strict=True))
        both = [(of_step[step], each.mean()) for step, each in zip(steps[1:], variance[1:], strict=True)]
        results[predictor] = float(scipy.stats.spearmanr(*np.array(both).T).statistic)
    return results


def table(rows: Sequence[Result]) -> list[dict[str, Any]]:
    """The correlations of every predictor with every target, over all runs and within methods."""
    results = []
    for target in TARGETS:
        for predictor in PREDICTORS:
            both = [row for row in rows if target in row and predictor in row]
            if len(both) < 3 or len({row[target] for row in both}) < 2:
                continue
            values = [[float(row[name]) for row in both] for name in (predictor, target)]
            ranks = [within(both, name) for name in (predictor, target)]
            results.append(
                {
                    "predictor": predictor,
                    "target": target,
                    "over all runs": rank_correlation(*values),
                    "within methods": rank_correlation(*ranks),
                }
            )
    return results


def at_each_rate(rows: Sequence[Result], target: str = TARGETS[0]) -> dict[str, dict[str, float]]:
    """{rate: {predictor: rank correlation with the target, over methods}}, of the first seed; some rates have more."""
    first = min(row["seed"] for row in rows)
    results: dict[str, dict[str, float]] = {}
    for rate in sorted({row["learning_rate"] for row in rows}):
        own = [row for row in rows if (row["learning_rate"], row["seed"]) == (rate, first)]
        own = [row for row in own if {target, *PREDICTORS} <= set(row)]
        if len(own) >= FEWEST:
            of_target = [row[target] for row in own]
            results[f"{rate:g} ({len(own)} methods)"] = {
                name: float(scipy.stats.spearmanr([row[name] for row in own], of_target).statistic)
                for name in PREDICTORS
            }
    return results


def markdown(
    results: Sequence[Mapping[str, Any]],
    in_time: Mapping[str, Estimate],
    of_rates: Mapping[str, Mapping[str, float]],
    count: int,
) -> str:
    """The correlations as tables."""
    lines = [
        f"{count} runs.",
        "",
        "| target | predictor | over all runs [95%] | within methods [95%] |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {each['target']} | {each['predictor']} | {correlation(each['over all runs'])} | "
        f"{correlation(each['within methods'])} |"
        for each in results
    ]
    lines += ["", "| predictor | with gradient variance, over time in a run [95%] |", "|---|---|"]
    lines += [f"| {predictor} | {correlation(each)} |" for predictor, each in in_time.items()]
    lines += [
        "",
        f"| with {TARGETS[0]}, over methods at one rate | {' | '.join(of_rates)} |",
        "|---" * (1 + len(of_rates)) + "|",
    ]
    for predictor in PREDICTORS:
        lines.append(f"| {predictor} | {' | '.join(f'{each[predictor]:+.2f}' for each in of_rates.values())} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Reads the rows of comparisons, and writes the table and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", action="append", required=True, type=Path, help="of a comparison; several go")
    parser.add_argument("--out", required=True, type=Path, help="a directory for tev.md and tev.json")
    given = parser.parse_args()
    rows = rows_of(parser, given.workdir)
    results = table(rows)
    of_runs = {
        str(each): over_time(in_force(read_metrics(each / "metrics.jsonl")), read_measurements(each))
        for workdir in given.workdir
        for each in directories_of(workdir)
    }
    in_time = {
        name: estimate([each[name] for each in of_runs.values() if np.isfinite(each.get(name, np.nan))])
        for name in PREDICTORS
    }
    of_rates = at_each_rate(rows)
    numbers = {"at the end": results, "over time": in_time, "at each rate": of_rates, "of runs": of_runs}
    write(given.out, "tev", markdown(results, in_time, of_rates, len(rows)), numbers)


if __name__ == "__main__":
    main()
