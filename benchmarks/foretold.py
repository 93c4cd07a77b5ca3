"""What the warning of a run, `stability/foretold`, came to in comparisons: how often before events, how often falsely.

    python benchmarks/foretold.py --workdir=runs/foretell --workdir=runs/ladder-1 --out=docs/results/foretell

For each comparison: the share of events (benchmarks/foretell.py) that it came within `--horizon` steps before, and the
share of stretches of so many steps, in the runs without an event, in which it was given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.comparisons import directories_of, write
from benchmarks.foretell import WARNING, Run, read, steps_of_warning
from jaxstab.stability import spikes


class Judgement(NamedTuple):
    """What the warning in the run came to in a comparison; shares with their 95% intervals (Clopper and Pearson)."""

    name: str
    events: int
    warned: tuple[float, float, float]
    median_steps: float
    windows: int
    alarmed: tuple[float, float, float]


def judged(name: str, runs: Sequence[Run], horizon: int) -> Judgement:
    """The warning of the run, over a comparison.

    Stretches begin where its windows have the values that they need, and end `horizon` steps before the run's end: an
    event might have followed one that ends later.
    """
    with_event = [run for run in runs if run.event is not None and run.event > spikes.LEAST]
    warnings = [steps_of_warning(run.signals[WARNING], run.event, horizon, 0.5) for run in with_event]
    stretches = [
        run.signals[WARNING][start : start + horizon].max() > 0.5
        for run in runs
        if run.event is None
        for start in range(spikes.LEAST, len(run.signals[WARNING]) - 2 * horizon + 1, horizon)
    ]
    share = share_of(warnings), share_of(stretches)
    return Judgement(name, len(warnings), share[0], float(np.median(warnings or [0])), len(stretches), share[1])


def share_of(values: Sequence[float]) -> tuple[float, float, float]:
    """The share that isn't 0, and its 95% interval."""
    if not len(values):
        return np.nan, np.nan, np.nan
    positive = int(np.count_nonzero(values))
    interval = scipy.stats.binomtest(positive, len(values)).proportion_ci()
    return positive / len(values), float(interval.low), float(interval.high)


def markdown(judgements: Sequence[Judgement], horizon: int) -> str:
    """What the warning came to, as a table."""

    def share(value: tuple[float, float, float]) -> str:
        return f"{value[0]:.1%} [{value[1]:.1%}, {value[2]:.1%}]" if np.isfinite(value[0]) else ""

    lines = [
        f"| comparison | events | warned of, within {horizon} steps [95%] | median steps of warning | "
        f"stretches of {horizon} steps without an event | alarmed [95%] |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {each.name} | {each.events} | {share(each.warned)} | {each.median_steps:g} | {each.windows} | "
        f"{share(each.alarmed)} |"
        for each in judgements
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Reads the cells of comparisons, and writes the table and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", action="append", required=True, type=Path, help="of a comparison; several go")
    parser.add_argument("--out", required=True, type=Path, help="a directory for foretold.md and foretold.json")
    parser.add_argument("--horizon", default=50, type=int, help="steps before an event in which a warning counts")
    given = parser.parse_args()
    comparisons: list[tuple[str, list[Run]]] = []
    for workdir in given.workdir:
        directories = directories_of(workdir)
        if not directories:
            parser.error(f"no runs in {workdir}: --workdir is that of `main.py compare`")
        comparisons.append((workdir.name, [read(directory) for directory in directories]))
    comparisons.append(("all", [run for _, runs in comparisons for run in runs]))
    judgements = [judged(name, runs, given.horizon) for name, runs in comparisons]
    write(given.out, "foretold", markdown(judgements, given.horizon), [each._asdict() for each in judgements])


if __name__ == "__main__":
    main()
