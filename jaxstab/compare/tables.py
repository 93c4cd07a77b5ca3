"""The tables of a comparison, from the rows of its cells."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxstab.compare.statistics import Estimate, Paired, between, estimate, paired, sensitivity

Result = Mapping[str, Any]
EVALUATED = ("_loss", "_perplexity", "_acc")  # how the names of what an evaluation came to end
SPIKES = "spikes: "


@dataclasses.dataclass(frozen=True)
class Table:
    """A table for people: a title, the head, rows of text, and what is to be said below it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    below: str = ""

    @property
    def markdown(self) -> str:
        return f"## {self.title}\n\n{self.body}"

    @property
    def body(self) -> str:
        """In Markdown, without the title."""
        lines = [self.head, tuple("---" for _ in self.head), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{body}\n" + (f"\n{self.below}\n" if self.below else "")


def wrapped(markdown: str) -> str:
    """Markdown whose prose has lines of 100 characters at most."""
    lines = markdown.splitlines()
    return "\n".join(line if line.startswith(("|", "!")) else textwrap.fill(line, 100) for line in lines) + "\n"


def sound(rows: Sequence[Result]) -> list[Result]:
    """Those whose device didn't fail."""
    return [row for row in rows if not row.get("failed")]


def variants(rows: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in rows))


def at(rows: Sequence[Result], variant: str, rate: float) -> list[Result]:
    """The runs of a variant at a rate."""
    return [row for row in rows if (row["variant"], row["learning_rate"]) == (variant, rate)]


def rates(rows: Sequence[Result]) -> list[float]:
    return sorted({row["learning_rate"] for row in rows})


def losses(rows: Sequence[Result], variant: str, rate: float, loss: str) -> dict[int, float]:
    """{seed: loss} of the runs of a variant at a rate; infinite where one diverged."""
    return {
        row["seed"]: np.inf if row["diverged"] else row[loss]
        for row in at(rows, variant, rate)
        if row["diverged"] or loss in row
    }


def mean_losses(rows: Sequence[Result], variant: str, loss: str) -> dict[float, float]:
    """{rate: mean loss over seeds}; infinite where one of them diverged."""
    by_rate = {rate: list(losses(rows, variant, rate, loss).values()) for rate in rates(rows)}
    return {rate: float(np.mean(values)) for rate, values in by_rate.items() if values}


def best_rate(rows: Sequence[Result], variant: str, loss: str) -> float:
    """The rate with the lowest mean loss, of those with the most seeds; the lowest rate where all diverged."""
    means = mean_losses(rows, variant, loss)
    seeds = {rate: len(losses(rows, variant, rate, loss)) for rate in means}
    return min(means, key=lambda rate: (-seeds[rate], means[rate], rate))


def finer(rows: Sequence[Result], variant: str, loss: str, best: float) -> str:
    """The rate that a parabola puts between those that were tried, and what it would gain, by the seeds that all have;
    "" where the best rate isn't `best` by these.
    """
    of_rate = {rate: losses(rows, variant, rate, loss) for rate in mean_losses(rows, variant, loss)}
    seeds = set.intersection(*map(set, of_rate.values())) if of_rate else set()
    if not seeds:
        return ""
    means = {rate: float(np.mean([of[seed] for seed in seeds])) for rate, of in of_rate.items()}
    rate, gain = between(means)
    return f"{rate:.2g}: -{gain:.4f}" if np.isfinite(gain) and min(means, key=lambda rate: means[rate]) == best else ""


def at_their_best(rows: Sequence[Result], baseline: str, loss: str) -> Table:
    """Every variant at its own best rate, beside the baseline at its own."""
    of_variant = {variant: best_rate(rows, variant, loss) for variant in variants(rows)}
    below = (
        "A seed stands for the same batches in the same order, and for the same draw of effective weights where the "
        "initial scale is the same. A best rate at an end of the grid may lie beyond it. Intervals by resampling two "
        "seeds are the range of both, and those of few are too narrow (docs/compare.md). Between rates: where a "
        "parabola through the best rate and its neighbours is lowest, and by how much, by the seeds that all rates "
        "have; a difference that is no larger may be one of rates."
    )
    table = _beside("Each at its own best learning rate", rows, baseline, loss, of_variant, below)
    more = tuple((*line, finer(rows, line[0], loss, of_variant[line[0]])) for line in table.rows)
    return dataclasses.replace(table, head=(*table.head, "between rates"), rows=more)


def at_the_common_rate(rows: Sequence[Result], baseline: str, loss: str) -> Table:
    """Every variant at the rate that is best for the baseline."""
    common = best_rate(rows, baseline, loss)
    of_variant = {variant: common for variant in variants(rows) if losses(rows, variant, common, loss)}
    return _beside(f"All at the baseline's best learning rate, {common:g}", rows, baseline, loss, of_variant, "")


def _beside(
    title: str, rows: Sequence[Result], baseline: str, loss: str, of_variant: Mapping[str, float], below: str
) -> Table:
    """Variants, each at a rate, with their differences to the baseline at its own."""
    has_baseline = baseline in of_variant
    reference = losses(rows, baseline, of_variant[baseline], loss) if has_baseline else {}
    body = []
    for variant, rate in of_variant.items():
        values, tried = losses(rows, variant, rate, loss), list(mean_losses(rows, variant, loss))
        ahead = "" if variant == baseline or not has_baseline else difference(paired(values, reference))
        edge = " (an end of the grid)" if len(tried) > 1 and rate in (tried[0], tried[-1]) else ""
        told = _estimate(estimate(list(values.values())))
        body.append((variant, f"{rate:g}{edge}", told, _std(values), ahead))
    if not has_baseline:
        below += f" No run of the baseline, {baseline}, is done: there are no differences yet."
    head = ("method", "rate", f"{loss} [95%]", "std over seeds", f"difference to {baseline}, by seed [95%]; p")
    return Table(title, head, tuple(body), below)


def by_rate(rows: Sequence[Result], name: str) -> Table:
    """What every variant comes to at every rate: a loss or a perplexity, mean and standard deviation over seeds."""
    body = []
    for variant in variants(rows):
        values = (list(losses(rows, variant, rate, name).values()) for rate in rates(rows))
        body.append((variant, *(_mean(each, "#.5g") for each in values)))
    return Table(f"{name} by learning rate", ("method", *(f"{rate:g}" for rate in rates(rows))), tuple(body))


def over_rates(rows: Sequence[Result], baseline: str, loss: str) -> Table:
    """How much a variant minds its rate, how many of its runs diverged, and the largest rate that trained."""
    body, asked = [], set(mean_losses(rows, baseline, loss)) or set(rates(rows))
    for variant in variants(rows):
        own = [row for row in rows if row["variant"] == variant]
        means = mean_losses(rows, variant, loss)
        trained = [rate for rate, mean in means.items() if np.isfinite(mean)]
        diverged = sum(row["diverged"] for row in own)
        minds = minding(own, {rate: mean for rate, mean in means.items() if rate in asked})
        sensitive = "" if not asked <= set(means) else f"{minds:.3f}" if np.isfinite(minds) else "none"
        cells = (sensitive, f"{diverged} of {len(own)}", f"{max(trained):g}" if trained else "none")
        body.append((variant, *cells, f"{np.mean([row['spikes'] for row in own]):.1f}"))
    head = ("method", "learning-rate sensitivity", "diverged", "largest rate that trained", "spikes a run")
    below = (
        "Sensitivity as Wortsman et al. 2023 define it: the mean over the rates of min(loss, initial loss) - best "
        f"loss, here over {', '.join(f'{rate:g}' for rate in sorted(asked))}, for methods with runs at all of these."
    )
    return Table("Over all learning rates", head, tuple(body), below)


def minding(rows: Sequence[Result], means: Mapping[float, float]) -> float:
    """The sensitivity of a variant's runs over these rates; NaN where none of them trained."""
    initial = [row["initial_loss"] for row in rows if "initial_loss" in row]  # finite
    trained = any(np.isfinite(list(means.values())))
    return sensitivity(means, float(np.mean(initial))) if trained and initial else np.nan


def evaluated(rows: Sequence[Result], loss: str) -> Table:
    """What every variant has at its best rate on each set that it was evaluated on, means over seeds."""
    names = [name for name in _names(rows) if name.endswith(EVALUATED) and name not in ("initial_loss", "train_loss")]
    body = []
    for variant in variants(rows) if names else ():
        rate = best_rate(rows, variant, loss)
        own = at(rows, variant, rate)
        values = ([row[name] for row in own if name in row] for name in names)
        body.append((variant, f"{rate:g}", *(_mean(each, ".4g", len(own)) for each in values)))
    below = "A run that diverged counts where it was evaluated all the same; where not, it is told how many were."
    return Table("Held-out text, at the best rate", ("method", "rate", *names), tuple(body), below)


def failures(rows: Sequence[Result]) -> Table:
    """The runs whose device failed."""
    body = tuple((row["cell"], str(row["steps"]), row["stopped"]) for row in rows if row.get("failed"))
    below = "They are in no other table. Delete the result.json of one, and the same command tries it again."
    return Table("Runs whose device failed", ("run", "steps", "why"), body, below)


def spiking(rows: Sequence[Result]) -> Table:
    """How many steps in a hundred the published definitions flag, over all runs of a variant."""
    names = [name for name in _names(rows) if name.startswith(SPIKES)]
    body = []
    for variant in variants(rows):
        own = [row for row in rows if row["variant"] == variant]
        steps = sum(row["steps"] for row in own)
        body.append((variant, *(f"{100 * sum(row.get(name, 0) for row in own) / steps:.2f}" for name in names)))
    below = "Flagged steps in a hundred. Runs of a few hundred steps are short for windows of a thousand."
    return Table("Spike scores", ("method", *(name.removeprefix(SPIKES) for name in names)), tuple(body), below)


def cost(rows: Sequence[Result], times: Mapping[str, Mapping[str, Any]]) -> Table:
    """Stored parameters, and the time of a step over the baseline's.

    Args:
      rows: of all cells.
      times: {variant: a `StepTime` as a dict}, of those that were timed.
    """
    body = []
    for variant in variants(rows):
        count = next(row["parameters"] for row in rows if row["variant"] == variant)
        of = times.get(variant)
        told = (f"{of['seconds']:.3g}", _interval(of["ratio"]), _interval(of["control"])) if of else ("", "", "")
        body.append((variant, f"{count:,}", *told))
    below = (
        "A variant's step and two of the baseline's take turns. The control is one of these over the other: what is "
        "no further from 1 than it is noise. A method whose runs were made by a command without the baseline has none."
    )
    head = ("method", "stored parameters", "seconds a step", "over the baseline's [95%]", "control [95%]")
    return Table("Cost", head, tuple(body), below)


def pairs_of(rows: Sequence[Result], first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers of every row that has both."""
    pairs = [(row[first], row[second]) for row in rows if first in row and second in row]
    x, y = np.array(pairs, float).reshape(-1, 2).T
    return x, y


def correlation(value: Estimate) -> str:
    if not np.isfinite(value.mean):
        return f"none (n={value.n})"
    return f"{value.mean:+.2f} [{value.low:+.2f}, {value.high:+.2f}] (n={value.n})"


def _names(rows: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _interval(value: Sequence[float]) -> str:
    mean, low, high, n = value
    return f"{mean:.3f} [{low:.3f}, {high:.3f}] (n={n})" if np.isfinite(low) else f"{mean:.3f} (n={n})"


def _mean(values: Sequence[float], form: str, of: int = 0) -> str:
    """A mean with the standard deviation and the number of its values; how many of `of` runs have one, if not all."""
    if not values or not np.isfinite(values).all():
        return "diverged" if values else ""
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    count = f"{len(values)} of {of}" if of > len(values) else len(values)
    return f"{np.mean(values):{form}}{spread} (n={count})"


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if np.isfinite(value) else "diverged"


def _std(values: Mapping[int, float]) -> str:
    finite = np.array(list(values.values()))
    return f"{finite.std(ddof=1):.4f}" if len(finite) > 1 and np.isfinite(finite).all() else ""


def _estimate(value: Estimate) -> str:
    interval = f" [{value.low:.4f}, {value.high:.4f}]" if np.isfinite(value.low) else ""
    return f"{_loss(value.mean)}{interval} (n={value.n})"


def difference(value: Paired) -> str:
    """A paired difference in words."""
    mean, low, high, n = value.difference
    if not np.isfinite(mean):
        return "none: a run diverged" if n else "none: no seed in common"
    interval = f" [{low:+.4f}, {high:+.4f}]; p={value.p:.3g}" if np.isfinite(value.p) else ""
    return f"{mean:+.4f}{interval} (n={n})"
