"""The page of a rung: what is bold, usable and judged is what was planted, and every method has its family."""

import json
import sys

import numpy as np
import pytest

from benchmarks import methods
from configs.methods import METHODS
from jaxstab.compare.comparison import Law

LAW = Law("small", 1, 0.05)


def row(method, rate, seed, loss):
    return {
        **{"cell": f"{method}-{rate:g}-seed{seed}", "variant": method, "method": method, "learning_rate": rate},
        **{"seed": seed, "initial_loss": 7.0, "diverged": bool(np.isinf(loss)), "wikitext_loss": loss + 1},
        "validation_loss": loss,
        **{"update_ratio_up_proj": 0.01, "update_ratio_down_proj": 0.01 * min(loss, 9) / 5},
    }


def rows():
    """By seed 1 "muon" is best at 0.1 and diverges at 1, where "small" is best; seven more judge it 0.2 ahead."""
    first = {"small": (6.0, 5.6, 5.5), "muon": (5.36, 5.3, np.inf), "he": (6.5, 6.0), "wesar": (6.4, 6.4, 6.4, 6.1)}
    of_first = [
        row(method, rate, 1, loss)
        for method, of_rate in first.items()
        for rate, loss in zip((0.01, 0.1, 1.0, 10.0), of_rate, strict=False)
    ]
    others = [
        row(method, rate, seed, loss + 0.01 * seed)
        for seed in range(2, 9)
        for method, rate, loss in (("small", 1.0, 5.5), ("muon", 0.1, 5.3))
    ]
    return of_first + others


def test_every_method_has_one_family():
    names = [name for names in methods.FAMILIES.values() for name in names.split()]
    assert sorted([*names, "small", "config"]) == sorted(METHODS)


def test_the_first_seed_is_told_at_all_rates():
    muon, small, he, wesar = methods.at_all_rates(rows(), LAW).rows
    assert muon == ("muon", "5.360", "**5.300**", "diverged", "", f"{(0.06 + 0 + 1.7) / 3:.2f}", "0.01 to 0.1")
    assert small == ("small", "6.000", "5.600", "**5.500**", "", f"{(0.5 + 0.1) / 3:.2f}", "1")
    assert he == ("he", "6.500", "**6.000**", "", "", "", "0.1")
    assert wesar == ("wesar", "6.400", "6.400", "6.400", "**6.100**", "0.00", "10")


def test_several_seeds_are_told_at_the_rate_that_the_first_chose():
    several = methods.of_several_seeds(rows(), LAW)
    assert {(each["variant"], each["learning_rate"]) for each in several} == {("muon", 0.1), ("small", 1.0)}
    told = methods.means(several, rows()).rows
    assert [line[:2] + line[-2:-1] for line in told] == [("muon", "0.1", "8"), ("small", "1", "8")]
    assert [line[-1] for line in told] == ["", ""]  # a neighbour diverged; the last rate
    of_small = [each for each in several if each["variant"] == "small"]
    ((*_, between),) = methods.means(of_small, [*rows(), row("small", 10.0, 1, 5.6)]).rows
    assert between == "1: -0.0000"  # 5.6, 5.5 and 5.6: the best is where it is lowest
    ((name, difference, _),) = methods.pairs(several).rows
    assert name == "muon - small" and difference.startswith("-0.2000 [-0.2000, -0.2000]; p=0.00781 (n=8)")


def test_seeds_at_several_rates_are_compared_over_those_that_all_rates_have():
    more = [row("muon", rate, seed, loss + 0.01 * seed) for seed in (2, 3) for rate, loss in ((0.01, 5.2), (1.0, 5.6))]
    ((name, *told),) = methods.around_best(rows() + more).rows
    of_rate = [np.array([5.36, 5.22, 5.23]), np.array([5.3, 5.32, 5.33]), np.array([np.inf] * 3)]
    first, second = (f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" for values in of_rate[:2])
    assert name == "muon" and told == [f"**{first}**", second, "diverged", "3"]


def test_paces_are_of_the_best_rates_and_go_with_the_loss():
    table = methods.pace(rows(), LAW)
    assert table.rows[0] == ("muon", "5.300", "0.0100", f"{0.01 * 5.3 / 5:.4f}", f"{5.3 / 5:.2f}")
    assert [line[0] for line in table.rows] == ["muon", "small", "he", "wesar"] and "+1.00 [" in table.below


def test_a_run_of_two_comparisons_counts_once_and_what_is_missing_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["methods", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"])
    with pytest.raises(SystemExit):
        methods.main()
    assert "no " + str(tmp_path / "results.jsonl") in capsys.readouterr().err
    second = tmp_path / "second"
    second.mkdir()
    for directory, lines in ((tmp_path, rows()), (second, [row("small", 1.0, 1, 9.0), row("peri", 1.0, 1, 5.4)])):
        (directory / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(sys, "argv", [*sys.argv, f"--workdir={second}"])
    with pytest.raises(SystemExit):
        methods.main()
    assert f"{tmp_path / 'comparison.json'} can't be used" in capsys.readouterr().err
    law = {"baseline": "muon", "seed": 1, "threshold": 0.05}  # not the first in the rows
    (tmp_path / "comparison.json").write_text(json.dumps({"law": law, "config": {}}))
    methods.main()
    page = (tmp_path / "out" / "methods.md").read_text()
    assert page.startswith("27 runs, 1 of them diverged.") and "| small | 1 | +0.2000" in page
    assert "WikiText-2 [95%]" in page and "9.000" not in page and "| peri |  |  | **5.400** |  |  | 1 |" in page
    assert (tmp_path / "out" / "methods.svg").stat().st_size > 10_000
