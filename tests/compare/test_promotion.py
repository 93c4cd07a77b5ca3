"""The law: rates by the first seed, differences by the others, and a p that seeds can reach."""

import numpy as np
import pytest
import scipy.stats

from jaxstab.compare.comparison import Law
from jaxstab.compare.grid import Cell, Grid
from jaxstab.compare.promotion import (
    check_seeds,
    chosen_rates,
    deciding,
    judgements,
    promotions,
    screening,
    seeds_needed,
    unjudged,
)
from jaxstab.config import ConfigError
from jaxstab.train.config import Config

LAW = Law("base", 1, 0.05)
RATES = (1e-3, 1e-2)


def rows(by, seeds=range(1, 8), diverged=()):
    """Rows of variants, {variant: {rate: loss}}, with noise that all share."""
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    return [
        {
            "variant": name,
            "learning_rate": rate,
            "seed": seed,
            "loss": loss + noise[seed] + 1e-3 * noise[20 + seed],
            "diverged": (name, seed) in diverged,
        }
        for name, losses in by.items()
        for rate, loss in losses.items()
        for seed in seeds
    ]


def words(given, law=LAW):
    return {each.variant: each.word for each in judgements(given, "loss", law)}


def test_a_method_is_promoted_by_seeds_that_did_not_choose_its_rate():
    given = rows({"base": {1e-3: 3.0, 1e-2: 3.1}, "good": {1e-3: 3.4, 1e-2: 2.9}, "bad": {1e-3: 3.2, 1e-2: 3.3}})
    assert words(given) == {"good": "promoted", "bad": "worse"}
    good = judgements(given, "loss", LAW)[0]
    assert good.rate == 1e-2 and good.difference.difference.n == 6
    own, base = (
        [r["loss"] for r in given if (r["variant"], r["learning_rate"]) == key and r["seed"] > 1]
        for key in (("good", 1e-2), ("base", 1e-3))
    )
    theirs = scipy.stats.permutation_test(
        (np.subtract(own, base),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    np.testing.assert_allclose(good.difference.p, theirs.pvalue)
    table = promotions(given, "loss", LAW)
    assert [row[-1] for row in table.rows] == ["promoted", "worse"] and "0.05" in table.below


def test_one_lucky_seed_promotes_nothing():
    given = rows({"base": {1e-3: 3.0}, "lucky": {1e-3: 3.0}})
    for row in given:
        row["loss"] -= 0.5 * (row["variant"] == "lucky" and row["seed"] == 1)
        row["loss"] += 0.01 * (-1) ** row["seed"] * (row["variant"] == "lucky")
    assert words(given) == {"lucky": "within noise"}


def test_what_cannot_be_decided_is_said():
    better = {"base": {1e-3: 3.0}, "good": {1e-3: 2.0}}
    assert words(rows(better, seeds=(1,))) == {"good": "no seed beside the first"}
    assert words(rows(better, seeds=(1, 2, 3))) == {"good": "too few seeds (2)"}
    assert words(rows(better, diverged={("good", 4)})) == {"good": "a run diverged"}
    assert judgements(rows({"good": {1e-3: 2.0}}), "loss", LAW) == []


@pytest.mark.parametrize(("threshold", "needed"), [(0.05, 7), (0.5, 3), (0.01, 9)])
def test_fewer_seeds_than_the_threshold_takes_are_refused(threshold, needed):
    assert seeds_needed(threshold) == needed
    ones = np.ones(needed - 1)
    p = scipy.stats.permutation_test((ones,), np.mean, permutation_type="samples").pvalue
    assert p <= threshold
    check_seeds(needed, threshold)
    with pytest.raises(ConfigError, match=f"needs {needed} --seeds"):
        check_seeds(needed - 1, threshold)


def test_until_promotion_runs_the_first_seed_everywhere_and_then_candidates_at_their_best_rates():
    cells = [
        Cell(name, rate, seed, (), Config()) for name in ("base", "good", "bad") for rate in RATES for seed in (1, 2)
    ]
    grid = Grid(tuple(cells))
    assert [(c.method, c.learning_rate) for c in screening(grid, LAW)] == [
        (name, rate) for name in ("base", "good", "bad") for rate in RATES
    ]
    by = {"base": {1e-3: 3.0, 1e-2: 3.1}, "good": {1e-3: 3.4, 1e-2: 2.9}, "bad": {1e-3: 3.2, 1e-2: 3.3}}
    chosen = chosen_rates(rows(by, seeds=(1,)), "loss", LAW)
    assert {(c.method, c.learning_rate, c.seed) for c in deciding(grid, chosen)} == {
        (name, rate, seed) for name, rate in (("base", 1e-3), ("good", 1e-2)) for seed in (1, 2)
    }
    assert unjudged(grid, chosen) == {}
    assert unjudged(Grid(tuple(cell for cell in cells if cell.learning_rate == 1e-3)), chosen) == {"good": 1e-2}
