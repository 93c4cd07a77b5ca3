"""The papers' numbers beside the project's: which of two methods is ahead there, and which here."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxstab.compare.comparison import Law
from jaxstab.compare.statistics import Paired, paired
from jaxstab.compare.tables import Result, Table, best_rate, difference, variants

Perplexity = tuple[float, float | None]  # mean, and standard deviation over runs where there are several


class Published(NamedTuple):
    """A table of a paper.

    Attributes:
      title: paper, table, size, tokens and runs.
      perplexities: {method: {set: perplexity}}.
      runs: how many a standard deviation is of.
    """

    title: str
    perplexities: Mapping[str, Mapping[str, Perplexity]]
    runs: int = 1


def beside(published: Published, rows: Sequence[Result], loss: str, law: Law) -> list[Table]:
    """A paper's numbers beside the project's, and the pairs of methods by whether their orders agree; none where fewer
    than two of its methods are among the rows, or no run was evaluated on its sets.

    Rates are chosen by the first seed, as the law has it, where there are others; a pair's difference is over these.
    """
    common = [method for method in published.perplexities if method in variants(rows)]
    sets = list(dict.fromkeys(name for method in common for name in published.perplexities[method]))
    ours = {(method, name): _log_perplexities(rows, method, name, loss, law) for method in common for name in sets}
    sets = [name for name in sets if any(ours[method, name] for method in common)]
    if len(common) < 2 or not sets:
        return []
    numbers = [
        (method, *(text for name in sets for text in (_theirs(published, method, name), _ours(ours[method, name]))))
        for method in common
    ]
    head = ("method", *(text for name in sets for text in (f"{name}, there", f"{name}, here")))
    pairs = [
        (f"{a}, {b}", name, *_pair(published, (a, b), name, ours, law.threshold))
        for name in sets
        for a, b in itertools.combinations(common, 2)
    ]
    counts = Counter(row[-1] for row in pairs)
    below = ", ".join(f"{count} {word}" for word, count in counts.most_common())
    chosen = f"Here at each method's best rate by seed {law.seed}, and of the other seeds where there are any."
    return [
        Table(f"Perplexity beside {published.title}", head, tuple(numbers), chosen),
        Table(
            f"Orders beside {published.title}",
            ("pair", "set", "ahead there", "by ln", "ahead here", "by ln [95%]; p", "orders"),
            tuple(pairs),
            f"Of {len(pairs)} pairs: {below}. By ln is the logarithm of the first's perplexity over the second's. Here "
            f"a difference with p > {law.threshold:g} is within noise, where there are seeds enough to say so; there "
            "one within two of its standard errors, where there are several runs. " + chosen,
        ),
    ]


def _log_perplexities(rows: Sequence[Result], method: str, name: str, loss: str, law: Law) -> dict[int, float]:
    """{seed: ln perplexity} at a method's best rate, by the seeds that didn't choose it where there are any."""
    own = [row for row in rows if row["variant"] == method]
    choosing = [row for row in own if row["seed"] == law.seed] or own
    rate = best_rate(choosing, method, loss)
    at_rate = {row["seed"]: row for row in own if row["learning_rate"] == rate}
    judging = {seed: row for seed, row in at_rate.items() if seed != law.seed} or at_rate
    values = {seed: math.log(row.get(f"{name}_perplexity", np.nan)) for seed, row in judging.items()}
    return values if np.isfinite(list(values.values())).any() else {}


def _pair(
    published: Published,
    pair: tuple[str, str],
    name: str,
    ours: Mapping[tuple[str, str], dict[int, float]],
    threshold: float,
) -> tuple[str, str, str, str, str]:
    """Who is ahead there and by what, who is here and by what, and whether the orders agree."""
    there = [published.perplexities[method].get(name) for method in pair]
    if None in there:
        return "", "", "", "", "not in the paper"
    (x, x_std), (y, y_std) = there  # type: ignore[misc]
    by = math.log(x / y)
    theirs = (_ahead(pair, by), f"{by:+.3f}")
    here = paired(*(ours[method, name] for method in pair))
    if not here.difference.n:
        return *theirs, "", "", "not measured here"
    if not math.isfinite(here.difference.mean):
        return *theirs, "", difference(here), "a run here has none"
    ahead = (_ahead(pair, here.difference.mean), difference(here))
    if _is_noise(x, y, x_std, y_std, published.runs):
        return *theirs, *ahead, "within noise there"
    word = _word(by * here.difference.mean > 0, here, threshold)
    return *theirs, *ahead, word if x_std is not None and y_std is not None else f"{word}, by one run there"


def _ahead(pair: tuple[str, str], by: float) -> str:
    return pair[by > 0] if by else "neither"


def _is_noise(x: float, y: float, x_std: float | None, y_std: float | None, runs: int) -> bool:
    """Whether a paper's difference is within two standard errors; where it has no spread, only a tie is."""
    if x_std is None or y_std is None:
        return x == y
    return abs(x - y) <= 2 * math.hypot(x_std, y_std) / math.sqrt(runs)


def _word(agree: bool, here: Paired, threshold: float) -> str:
    word, n = "agree" if agree else "disagree", here.difference.n
    if n < 2:
        return f"{word}, by one seed"
    if 2 / 2**n > threshold:
        return f"{word}, by too few seeds ({n})"
    return word if here.p <= threshold else "within noise here"


def _theirs(published: Published, method: str, name: str) -> str:
    value = published.perplexities[method].get(name)
    if value is None:
        return ""
    return f"{value[0]:.2f}" + (f" ({value[1]:.2f})" if value[1] is not None else "")


def _ours(values: Mapping[int, float]) -> str:
    if not values:
        return ""
    perplexities = np.exp([value for value in values.values() if math.isfinite(value)])
    if len(perplexities) < len(values):
        return f"{len(values) - len(perplexities)} of {len(values)} runs have none"
    spread = f" ({_short(perplexities.std(ddof=1))})" if len(perplexities) > 1 else ""
    return f"{_short(perplexities.mean())}{spread}"


def _short(perplexity: float) -> str:
    return f"{perplexity:.2f}" if perplexity < 1e4 else f"{perplexity:.3g}"
