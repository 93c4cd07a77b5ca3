"""What a rung of the ladder says: every method at all rates, those that several seeds judge, and pairs of these.

    python benchmarks/methods.py --workdir=runs/ladder-1 --workdir=runs/ladder-1b --out=docs/results/methods

The law, with the baseline and the seed that chooses rates, is that of the first workdir's comparison.json. Of that
seed: the losses at all rates, the best in bold; Wortsman et al. 2023's sensitivity over the rates of the baseline,
where one has them all; and the rates within 0.1 nats of the best. Of methods with several seeds at their best rate:
means with 95% intervals by resampling; what the law says of it beside the baseline (docs/compare.md); the means at
every rate that has several seeds; and the difference between each two of them over all seeds that both have, with p by
permutation of signs, which nobody fixed before. The paces of up_proj and down_proj at the best rates, and whether
unevenness goes with the loss. A run that two of the workdirs have is taken from the first. The figure has the losses
over rates, a panel a family.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.comparisons import rows_of, save, write
from jaxstab.compare.comparison import Law, read_comparison
from jaxstab.compare.curves import COLORS
from jaxstab.compare.promotion import promotions
from jaxstab.compare.statistics import estimate, paired, rank_correlation
from jaxstab.compare.tables import (
    Result,
    Table,
    best_rate,
    correlation,
    difference,
    finer,
    losses,
    mean_losses,
    minding,
    rates,
    variants,
)
from jaxstab.config import UserError

LOSS = "validation_loss"
TEXTS = {LOSS: "held-out text", "wikitext_loss": "WikiText-2"}
PACE = ("update_ratio_up_proj", "update_ratio_down_proj")
USABLE = 0.1  # nats above a method's best loss
FAMILIES = {
    "initial scales": "he xavier megatron zero_outputs metainit gradinit nio autoinit",
    "reparameterizations": "wesar wesar_wide wesar_small wesar_fixed weight_norm sigma_reparam",
    "further reparameterizations": "residual_scaling residual_scaling_small sigma_reparam_post multipliers "
    "multipliers_both fixup wesar_gradinit",
    "rates alone, and MLRA": "rescaled_rates rescaled_rates_small rescaled_rates_wide mlra mlra_normal "
    "mlra_normal_control",
    "embeddings and lm_head": "plain embed_detach scaled_embed embed_norm mu_centering no_z_loss",
    "norms": "qk_norm peri reordered sandwich mix_ln dyt derf",
    "attention and the MLP": "gated_heads gated_elements sink swiglu mlp_clamp",
    "update rules": "muon muon_per_head polar_express normuon cautious_adamw batch_adamw stable_adamw spam",
    "decay, norms held": "adamh muonh adamc cautious_decay embeddings_undecayed",
    "clipping": "adagc zclip update_clip unclipped",
}


def of_first_seed(rows: Sequence[Result], law: Law) -> list[Result]:
    return [row for row in rows if row["seed"] == law.seed]


def at_all_rates(rows: Sequence[Result], law: Law) -> Table:
    """The first seed's losses, the method with the lowest first."""
    rows = of_first_seed(rows, law)
    grid, asked = rates(rows), set(mean_losses(rows, law.baseline, LOSS)) or set(rates(rows))

    def line(variant: str) -> tuple[float, tuple[str, ...]]:
        of_rate, best = mean_losses(rows, variant, LOSS), best_rate(rows, variant, LOSS)
        usable = [f"{rate:g}" for rate in of_rate if of_rate[rate] < of_rate[best] + USABLE]
        told = {rate: f"{loss:.3f}" if np.isfinite(loss) else "diverged" for rate, loss in of_rate.items()}
        told[best] = f"**{told[best]}**"
        own = [row for row in rows if row["variant"] == variant]
        minds = minding(own, {rate: loss for rate, loss in of_rate.items() if rate in asked})
        told_minds = f"{minds:.2f}" if asked <= set(of_rate) and np.isfinite(minds) else ""
        span = " to ".join(dict.fromkeys((usable[0], usable[-1]))) if usable else "none"
        return of_rate[best], (variant, *(told.get(rate, "") for rate in grid), told_minds, span)

    head = ("method", *(f"{rate:g}" for rate in grid), "sensitivity", f"within {USABLE} of its best")
    return Table("One seed at all rates", head, tuple(each for _, each in sorted(map(line, variants(rows)))))


def of_several_seeds(rows: Sequence[Result], law: Law) -> list[Result]:
    """The runs at the rates that the first seed chose, of methods that have several seeds there."""
    first = of_first_seed(rows, law)
    chosen = {(variant, best_rate(first, variant, LOSS)) for variant in variants(first)}
    at_rate = [row for row in rows if (row["variant"], row["learning_rate"]) in chosen]
    several = {row["variant"] for row in at_rate if row["seed"] != law.seed}
    return sorted((row for row in at_rate if row["variant"] in several), key=lambda row: row["learning_rate"])


def means(rows: Sequence[Result], first: Sequence[Result]) -> Table:
    """Means over seeds, on every text that runs have; and what a rate between those of the first seed would gain."""
    body, texts = [], [name for name in TEXTS if any(name in row for row in rows)]
    for variant in variants(rows):
        own = [row for row in rows if row["variant"] == variant]
        rate = own[0]["learning_rate"]
        of_seeds = [list(losses(own, variant, rate, name).values()) for name in texts]
        values = [estimate(each) for each in of_seeds]
        told = [
            f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"
            if np.isfinite(value.mean)
            else "a run diverged"
            if value.n
            else ""
            for value in values
        ]
        spread = f"{np.std(of_seeds[0], ddof=1):.3f}" if np.isfinite(values[0].mean) else ""
        body.append(
            (values[0].mean, (variant, f"{rate:g}", *told, spread, str(len(own)), finer(first, variant, LOSS, rate)))
        )
    head = ("method", "rate", *(f"{TEXTS[name]} [95%]" for name in texts), "std over seeds", "seeds", "between rates")
    return Table("Several seeds", head, tuple(line for _, line in sorted(body)))


def around_best(rows: Sequence[Result]) -> Table:
    """Means and standard deviations over the seeds that a method has at several rates; the lowest mean in bold."""
    body, grid = [], set()
    for variant in variants(rows):
        of_rate = {rate: losses(rows, variant, rate, LOSS) for rate in rates(rows)}
        several = {rate: values for rate, values in of_rate.items() if len(values) > 1}
        if len(several) < 2:
            continue
        seeds = set.intersection(*map(set, several.values()))
        values = {rate: [several[rate][seed] for seed in sorted(seeds)] for rate in several}
        best = min(values, key=lambda rate: np.mean(values[rate]))
        told = {
            rate: f"{np.mean(each):.3f} ± {np.std(each, ddof=1):.3f}" if np.isfinite(each).all() else "diverged"
            for rate, each in values.items()
        }
        told[best] = f"**{told[best]}**"
        body.append((np.mean(values[best]), variant, told, len(seeds)))
        grid |= set(told)
    head = ("method", *(f"{rate:g}" for rate in sorted(grid)), "seeds")
    lines = (
        (name, *(told.get(rate, "") for rate in sorted(grid)), str(seeds)) for _, name, told, seeds in sorted(body)
    )
    return Table("Several seeds at several rates", head, tuple(lines))


def pairs(rows: Sequence[Result]) -> Table:
    """The difference between each two methods, on every text."""
    order = sorted(variants(rows), key=lambda variant: min(mean_losses(rows, variant, LOSS).values()))
    of = {
        (variant, name): losses(rows, variant, best_rate(rows, variant, LOSS), name)
        for variant in order
        for name in TEXTS
    }
    body = [
        (f"{one} - {other}", *(difference(paired(of[one, name], of[other, name])) for name in TEXTS))
        for one, other in itertools.combinations(order, 2)
    ]
    return Table("Beside each other", ("", *TEXTS.values()), tuple(body))


def pace(rows: Sequence[Result], law: Law) -> Table:
    """The update ratios of two matrices of the last block, of the first seed at its best rate."""
    first = of_first_seed(rows, law)
    best = {variant: best_rate(first, variant, LOSS) for variant in variants(first)}
    chosen = [row for row in first if row["learning_rate"] == best[row["variant"]] and {LOSS, *PACE} <= set(row)]
    chosen.sort(key=lambda row: row[LOSS])
    ratios = [[row[name] for name in PACE] for row in chosen]
    uneven = [abs(math.log(down / up)) for up, down in ratios]
    body = [
        (row["variant"], f"{row[LOSS]:.3f}", f"{up:.4f}", f"{down:.4f}", f"{down / up:.2f}")
        for row, (up, down) in zip(chosen, ratios, strict=True)
    ]
    related = correlation(rank_correlation(uneven, [row[LOSS] for row in chosen]))
    below = f"Rank correlation of |ln(down_proj over up_proj)| with the loss, by resampling methods: {related}."
    head = ("method", TEXTS[LOSS], "‖ΔW‖/‖W‖ of up_proj", "of down_proj", "down_proj over up_proj")
    return Table("Pace", head, tuple(body), below)


def draw(rows: Sequence[Result], law: Law, path: Path) -> None:
    """The first seed's losses over rates, a panel a family, with the baseline in each."""
    rows = of_first_seed(rows, law)
    there = {family: [name for name in names.split() if name in variants(rows)] for family, names in FAMILIES.items()}
    run = {family: names for family, names in there.items() if names}
    across = 2
    down = -(-len(run) // across)
    figure, axes = plt.subplots(down, across, figsize=(9, 2.6 * down), layout="constrained", sharex=True, sharey=True)
    for axis, (family, names) in zip(np.ravel(axes), run.items(), strict=False):
        for place, variant in enumerate([law.baseline, *names]):
            of_rate = {rate: loss for rate, loss in mean_losses(rows, variant, LOSS).items() if np.isfinite(loss)}
            style = {"color": "#999999", "linewidth": 3} if not place else {"color": COLORS[(place - 1) % len(COLORS)]}
            marker = "osv^Dx*P"[place % 8]
            axis.plot(list(of_rate), list(of_rate.values()), marker=marker, markersize=4, label=variant, **style)
        axis.set(xscale="log", title=family)
        axis.legend(fontsize=7)
    figure.supxlabel("peak learning rate")
    figure.supylabel("loss on held-out text")
    save(figure, path)


def main() -> None:
    """Reads the rows of comparisons, and writes tables and a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", action="append", required=True, type=Path, help="of a comparison; several go")
    parser.add_argument("--out", required=True, type=Path, help="a directory for methods.md and methods.svg")
    given = parser.parse_args()
    runs: dict[str, Result] = {}
    for row in rows_of(parser, given.workdir):
        runs.setdefault(row["cell"], row)
    rows = list(runs.values())
    try:
        law, _ = read_comparison(given.workdir[0])
    except UserError as error:
        parser.error(str(error))
    several = of_several_seeds(rows, law)
    diverged = sum(row["diverged"] for row in rows)
    tables = (
        [means(several, of_first_seed(rows, law)), around_best(rows), promotions(several, LOSS, law), pairs(several)]
        if several
        else []
    )
    text = f"{len(rows)} runs, {diverged} of them diverged.\n\n"
    text += "\n".join(table.markdown for table in (*tables, at_all_rates(rows, law), pace(rows, law)) if table.rows)
    write(given.out, "methods", text)
    draw(rows, law, given.out / "methods.svg")


if __name__ == "__main__":
    main()
