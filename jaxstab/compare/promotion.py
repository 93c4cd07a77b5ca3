"""House law: what may be called better, by a threshold that is fixed before the runs; and what is run until then.

The rate of a variant is the best by the first seed. What it wins by is judged on the other seeds, which had no part in
choosing it: paired differences to the baseline at its own rate, and a two-sided permutation of their signs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxstab.compare.comparison import Law
from jaxstab.compare.grid import Cell, Grid
from jaxstab.compare.statistics import Paired, paired
from jaxstab.compare.tables import Result, Table, best_rate, difference, losses, variants
from jaxstab.config import ConfigError


class Judgement(NamedTuple):
    """How a variant stands against the baseline.

    Attributes:
      variant, rate: the one, at its best rate by the first seed.
      difference: to the baseline over the other seeds.
      word: "promoted", "worse", "within noise", or what is missing.
    """

    variant: str
    rate: float
    difference: Paired
    word: str


def seeds_needed(threshold: float) -> int:
    """The fewest seeds with which the law can be met: one to choose the rate, and 2/2^n <= threshold."""
    return 1 + math.ceil(math.log2(2 / threshold))


def check_seeds(count: int, threshold: float) -> None:
    """Raises ConfigError where so few seeds can't promote anything."""
    if count < seeds_needed(threshold):
        raise ConfigError(
            f"--until=promotion needs {seeds_needed(threshold)} --seeds or more for --threshold={threshold:g}: one to "
            f"choose rates, and with n others no p is under 2/2^n; {count} {'is' if count == 1 else 'are'} given"
        )


def screening(grid: Grid, law: Law) -> list[Cell]:
    """The cells of the seed that chooses rates: every variant at every rate."""
    return [cell for cell in grid.cells if cell.seed == law.seed]


def chosen_rates(rows: Sequence[Result], loss: str, law: Law) -> dict[str, float]:
    """The best rates, by the first seed, of the baseline and of those that it doesn't put behind the baseline.

    None where no run of the baseline is done.
    """
    first = [row for row in rows if row["seed"] == law.seed]
    rate = {variant: best_rate(first, variant, loss) for variant in variants(first)}
    least = {variant: min(losses(first, variant, rate[variant], loss).values()) for variant in rate}
    return {variant: rate[variant] for variant in rate if least[variant] <= least.get(law.baseline, -math.inf)}


def deciding(grid: Grid, chosen: Mapping[str, float]) -> list[Cell]:
    """The cells at the rates that were chosen, of all seeds."""
    return [cell for cell in grid.cells if chosen.get(cell.variant) == cell.learning_rate]


def unjudged(grid: Grid, chosen: Mapping[str, float]) -> dict[str, float]:
    """The grid's variants that none of its cells judges, since an earlier grid has their best rate and it doesn't."""
    judged = {cell.variant for cell in deciding(grid, chosen)}
    return {cell.variant: chosen[cell.variant] for cell in grid.cells if cell.variant in chosen.keys() - judged}


def judgements(rows: Sequence[Result], loss: str, law: Law) -> list[Judgement]:
    """How every variant but the baseline stands, by the law; none where the baseline isn't there."""
    first = [row for row in rows if row["seed"] == law.seed]
    others = [row for row in rows if row["seed"] != law.seed]
    if law.baseline not in variants(first):
        return []
    reference = losses(others, law.baseline, best_rate(first, law.baseline, loss), loss)

    def judgement(variant: str) -> Judgement:
        rate = best_rate(first, variant, loss)
        result = paired(losses(others, variant, rate, loss), reference)
        return Judgement(variant, rate, result, _word(result, law.threshold))

    return [judgement(variant) for variant in variants(first) if variant != law.baseline]


def promotions(rows: Sequence[Result], loss: str, law: Law) -> Table:
    """The judgements as a table."""
    each = judgements(rows, loss, law)
    body = tuple((v.variant, f"{v.rate:g}", difference(v.difference), v.word) for v in each)
    count = sum(v.word in ("promoted", "worse", "within noise") for v in each)
    below = (
        f"The law, fixed before the runs: rates by seed {law.seed}, differences over the other seeds, paired; promoted "
        f"where p <= {law.threshold:g} by permutation of signs, two-sided, which takes {seeds_needed(law.threshold)} "
        "seeds."
    )
    if count:
        below += (
            f" Were none of the {count} that could be judged any better, at most {count * law.threshold / 2:.2g} would "
            "be promoted by chance."
        )
    return Table("Promotion", ("method", "rate", f"difference to {law.baseline} [95%]; p", "by the law"), body, below)


def _word(result: Paired, threshold: float) -> str:
    difference = result.difference
    if not difference.n:
        return "no seed beside the first"
    if not math.isfinite(difference.mean):
        return "a run diverged"
    if 2 / 2**difference.n > threshold:
        return f"too few seeds ({difference.n})"
    if result.p > threshold:
        return "within noise"
    return "promoted" if difference.mean < 0 else "worse"
