"""Does TEV foretell gradient variance and the loss at the end? Rank correlations over all runs of comparisons.

    python benchmarks/tev.py --workdir=runs/ladder-1 --workdir=runs/depth-48 --out=docs/results/tev

Chung et al. 2024 offer the mean TEV as a proxy for gradient variance. Beside it stand what is cheaper: the gradient's
norm and the update's. Each is correlated with the gradient variance at the end (over micro-batches, and over entries,
since the paper doesn't say which), the loss at the end and whether the run diverged; over all runs, and within methods,
where the correlation is the mean of each method's own ranks: a proxy that only tells methods apart has none there.
Intervals by resampling runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from jaxstab.compare.statistics import rank_correlation
from jaxstab.compare.tables import correlation

PREDICTORS = ("tev_embed_tokens", "tev_lm_head", "grad_norm", "grad_norm_effective", "update_norm", "log_z")
TARGETS = ("gradient_variance", "gradient_entry_variance", "train_loss", "validation_loss", "diverged")

Row = Mapping[str, Any]


def within(rows: Sequence[Row], name: str, by: str = "variant") -> np.ndarray:
    """The ranks of a number among the runs of its own method, from 0 to 1."""
    values, groups = np.array([row[name] for row in rows], float), np.array([row[by] for row in rows])
    ranks = np.zeros(len(rows))
    for group in set(groups):
        of_group = groups == group
        ranks[of_group] = (scipy.stats.rankdata(values[of_group]) - 0.5) / of_group.sum()
    return ranks


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
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


def markdown(results: Sequence[Mapping[str, Any]], count: int) -> str:
    """The correlations as a table."""
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
    return "\n".join(lines) + "\n"


def main() -> None:
    """Reads the rows of comparisons, and writes the table and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", action="append", required=True, type=Path, help="of a comparison; several go")
    parser.add_argument("--out", required=True, type=Path, help="a directory for tev.md and tev.json")
    given = parser.parse_args()
    paths = [each / "results.jsonl" for each in given.workdir]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        parser.error(f"no {', '.join(missing)}: --workdir is that of `main.py compare`")
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    results = table(rows)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "tev.md").write_text(markdown(results, len(rows)))
    (given.out / "tev.json").write_text(json.dumps(results, indent=1) + "\n")
    print(markdown(results, len(rows)))


if __name__ == "__main__":
    main()
