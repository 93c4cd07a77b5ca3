"""The papers' orders beside the project's: agreement, disagreement and noise, each where it is."""

import math

import numpy as np
import pytest

from configs.methods import METHODS
from configs.published import PUBLISHED
from jaxstab.compare.comparison import Law
from jaxstab.compare.orderings import Published, beside

LAW = Law("a", 1, 0.05)
THEIRS = Published(
    "a paper",
    {
        "a": {"wikitext": (20.0, 0.5)},
        "b": {"wikitext": (18.0, 0.5)},
        "c": {"wikitext": (20.1, 0.5)},
        "d": {"wikitext": (10.0, None)},
    },
    runs=5,
)


def rows(perplexities, seeds=range(1, 8)):
    noise = np.random.default_rng(2).normal(1, 0.01, 10)
    return [
        {
            "variant": name,
            "learning_rate": 1e-3,
            "seed": seed,
            "loss": 3.0,
            "diverged": False,
            "wikitext_perplexity": value * noise[seed] * (1 + 1e-3 * (-1) ** seed * len(name)),
        }
        for name, value in perplexities.items()
        for seed in seeds
    ]


def words(given):
    tables = beside(THEIRS, given, "loss", LAW)
    return {row[0]: row[-1] for row in tables[1].rows} if tables else None


def test_orders_agree_disagree_or_are_noise():
    noisy = rows({"a": 100.0, "b": 90.0, "c": 95.0})
    for row in noisy:
        row["wikitext_perplexity"] *= 1 + 0.2 * (row["variant"] == "b") * (-1) ** row["seed"]
    assert words(noisy) == {
        "a, b": "within noise here",
        "a, c": "within noise there",
        "b, c": "within noise here",
    }
    assert words(rows({"a": 100.0, "b": 90.0})) == {"a, b": "agree"}
    assert words(rows({"a": 90.0, "b": 100.0})) == {"a, b": "disagree"}
    assert words(rows({"a": 100.0, "d": 90.0}, seeds=(1,))) == {"a, d": "agree, by one seed, by one run there"}
    assert words(rows({"a": 100.0, "b": 90.0}, seeds=(1, 2, 3))) == {"a, b": "agree, by too few seeds (2)"}
    assert words(rows({"a": 100.0})) is None
    assert beside(THEIRS, [{**row, "wikitext_perplexity": np.nan} for row in noisy], "loss", LAW) == []


def test_who_is_ahead_is_named_there_and_here():
    (order,) = beside(THEIRS, rows({"a": 90.0, "b": 100.0}), "loss", LAW)[1].rows
    assert order[:5] == ("a, b", "wikitext", "b", f"{math.log(20 / 18):+.3f}", "a") and order[5].startswith("-0.10")


def test_runs_that_have_no_perplexity_are_told_and_have_no_order():
    given = rows({"a": 100.0, "b": 90.0})
    for row in given:
        if row["variant"] == "b" and row["seed"] in (3, 5):
            del row["wikitext_perplexity"]
    numbers, orders = beside(THEIRS, given, "loss", LAW)
    assert numbers.rows[1][2] == "2 of 6 runs have none" and orders.rows[0][-1] == "a run here has none"


def test_numbers_stand_beside_each_other_and_those_of_diverged_runs_are_missing():
    given = rows({"a": 100.0, "b": 90.0})
    for row in given:
        if row["variant"] == "b":
            del row["wikitext_perplexity"]
    numbers, orders = beside(THEIRS, given, "loss", LAW)
    assert numbers.rows[0][:2] == ("a", "20.00 (0.50)") and numbers.rows[0][2].startswith("100.")
    assert numbers.rows[1][1:] == ("18.00 (0.50)", "")
    assert orders.rows[0][3] == f"{math.log(20 / 18):+.3f}" and orders.rows[0][-1] == "not measured here"


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda each: each.title)
def test_what_is_published_is_of_methods_that_can_be_run(published):
    assert set(published.perplexities) <= set(METHODS) and len(published.perplexities) > 1
    assert all(set(sets) == {"wikitext", "lambada"} for sets in published.perplexities.values())
