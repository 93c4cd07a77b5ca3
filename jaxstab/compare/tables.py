"""The tables of a comparison, from the rows of its cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxstab.compare.statistics import Estimate, Paired, estimate, paired, sensitivity

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table for people: a title, the head, rows of text, and what is to be said below it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    below: str = ""

    @property
    def markdown(self) -> str:
        lines = [self.head, tuple("---" for _ in self.head), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n{body}\n" + (f"\n{self.below}\n" if self.below else "")


def variants(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in rows))


def rates(rows: Sequence[Row]) -> list[float]:
    return sorted({row["learning_rate"] for row in rows})


def losses(rows: Sequence[Row], variant: str, rate: float, loss: str) -> dict[int, float]:
    """{seed: loss} of the runs of a variant at a rate; infinite where one diverged."""
    return {
        row["seed"]: np.inf if row["diverged"] else row[loss]
        for row in rows
        if (row["variant"], row["learning_rate"]) == (variant, rate) and (row["diverged"] or loss in row)
    }


def mean_losses(rows: Sequence[Row], variant: str, loss: str) -> dict[float, float]:
    """{rate: mean loss over seeds}; infinite where one of them diverged."""
    by_rate = {rate: list(losses(rows, variant, rate, loss).values()) for rate in rates(rows)}
    return {rate: float(np.mean(values)) for rate, values in by_rate.items() if values}


def best_rate(rows: Sequence[Row], variant: str, loss: str) -> float:
    """The rate with the lowest mean loss; the lowest rate where all diverged."""
    means = mean_losses(rows, variant, loss)
    return min(means, key=lambda rate: (means[rate], rate))


def at_their_best(rows: Sequence[Row], baseline: str, loss: str) -> Table:
    """Every variant at its own best rate, beside the baseline at its own."""
    reference = losses(rows, baseline, best_rate(rows, baseline, loss), loss)
    body = []
    for variant in variants(rows):
        rate = best_rate(rows, variant, loss)
        values = losses(rows, variant, rate, loss)
        difference = "" if variant == baseline else _paired(paired(values, reference))
        edge = " (an end of the grid)" if len(rates(rows)) > 1 and rate in (rates(rows)[0], rates(rows)[-1]) else ""
        body.append((variant, f"{rate:g}{edge}", _estimate(estimate(list(values.values()))), _std(values), difference))
    head = (
        "method",
        "best rate",
        f"{loss} [95%]",
        "std over seeds",
        f"difference to {baseline}, by seed [95%]; p",
    )
    below = (
        "A seed stands for the same batches in the same order, and for the same draw of effective weights where the "
        "initial scale is the same. A best rate at an end of the grid may lie beyond it."
    )
    return Table("Each at its own best learning rate", head, tuple(body), below)


def by_rate(rows: Sequence[Row], loss: str) -> Table:
    """The mean loss of every variant at every rate."""
    body = []
    for variant in variants(rows):
        means = mean_losses(rows, variant, loss)
        body.append((variant, *(_loss(means.get(rate)) for rate in rates(rows))))
    return Table(f"{loss} by learning rate", ("method", *(f"{rate:g}" for rate in rates(rows))), tuple(body))


def over_rates(rows: Sequence[Row], loss: str) -> Table:
    """How much a variant minds its rate, how many of its runs diverged, and the largest rate that trained."""
    body = []
    for variant in variants(rows):
        own = [row for row in rows if row["variant"] == variant]
        trained = [row["learning_rate"] for row in own if not row["diverged"]]
        diverged = sum(row["diverged"] for row in own)
        minds = sensitivity(mean_losses(rows, variant, loss), float(np.mean([row["initial_loss"] for row in own])))
        cells = (f"{minds:.3f}", f"{diverged} of {len(own)}", f"{max(trained):g}" if trained else "none")
        body.append((variant, *cells, f"{np.mean([row['spikes'] for row in own]):.1f}"))
    head = ("method", "learning-rate sensitivity", "diverged", "largest rate that trained", "spikes a run")
    below = (
        "Sensitivity as Wortsman et al. 2023 define it: the mean over the rates of min(loss, initial loss) - best loss."
    )
    return Table("Over all learning rates", head, tuple(body), below)


def cost(rows: Sequence[Row], baseline: str) -> Table:
    """Stored parameters, and the time of a step over the baseline's."""
    speeds = {v: float(np.median([r["tokens_per_second"] for r in rows if r["variant"] == v])) for v in variants(rows)}
    body = tuple(
        (v, f"{next(r['parameters'] for r in rows if r['variant'] == v):,}", f"{speeds[baseline] / speeds[v]:.3f}")
        for v in variants(rows)
    )
    below = (
        "Medians over runs that followed each other, on a machine whose speed drifts; benchmarks/speed.py takes turns."
    )
    return Table("Cost", ("method", "stored parameters", "time of a step, over the baseline's"), body, below)


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if np.isfinite(value) else "diverged"


def _std(values: Mapping[int, float]) -> str:
    finite = np.array(list(values.values()))
    return f"{finite.std(ddof=1):.4f}" if len(finite) > 1 and np.isfinite(finite).all() else ""


def _estimate(value: Estimate) -> str:
    interval = f" [{value.low:.4f}, {value.high:.4f}]" if np.isfinite(value.low) else ""
    return f"{_loss(value.mean)}{interval} (n={value.n})"


def _paired(value: Paired) -> str:
    difference = value.difference
    if not np.isfinite(difference.mean):
        return "none: a run diverged" if difference.n else "none: no seed in common"
    interval = f" [{difference.low:+.4f}, {difference.high:+.4f}]; p={value.p:.3g}" if np.isfinite(value.p) else ""
    return f"{difference.mean:+.4f}{interval} (n={difference.n})"
