"""Numbers over depth: a planted power law comes back, at the rate that the first seed chose."""

import json
import sys

import numpy as np
import pytest

from benchmarks import depth

DEPTHS = (6, 12, 24, 48, 96)


def rows():
    """Two methods: the variance of one grows as the depth, that of the other not; the first seed alone prefers 0.1."""
    random = np.random.default_rng(0)
    return [
        {
            **{"method": method, "model.layers": layers, "seed": seed, "learning_rate": rate},
            "cell": f"{method}-{rate}-{seed}-{layers}",
            **{"variant": f"{method}, model.layers={layers}", "diverged": False},
            "validation_loss": 5.0 + (0.1 if (rate == 0.1) == (seed == 1) else 0.0) * -1,
            "gradient_variance": 1e-4 * layers**power * np.exp(random.normal(scale=0.01)),
        }
        for method, power in (("growing", 1.0), ("flat", 0.0))
        for layers in DEPTHS
        for rate in (0.01, 0.1)
        for seed in (1, 2, 3)
    ]


def test_the_first_seed_chooses_the_rate_and_the_others_are_told():
    runs = depth.at_best_rates(rows(), "growing")
    assert {row["learning_rate"] for row in runs} == {0.1} and {row["seed"] for row in runs} == {2, 3}
    assert len(runs) == 2 * len(DEPTHS)
    alone = [row for row in rows() if row["seed"] == 1]
    assert {row["seed"] for row in depth.at_best_rates(alone, "flat")} == {1}


def test_the_slope_is_the_power_that_was_planted():
    growing, flat = (
        depth.slope(depth.at_best_rates(rows(), name), "gradient_variance") for name in ("growing", "flat")
    )
    assert growing.value == pytest.approx(1.0, abs=0.02) and growing.low < 1 < growing.high
    assert flat.value == pytest.approx(0.0, abs=0.02) and flat.low < 0 < flat.high
    assert np.isnan(depth.slope(rows()[:2], "gradient_variance").value)
    assert np.isnan(depth.slope(rows(), "jacobian").value)


def test_it_writes_tables_and_a_figure_and_says_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["depth", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"])
    with pytest.raises(SystemExit):
        depth.main()
    assert f"no {tmp_path / 'results.jsonl'}: --workdir is that of" in capsys.readouterr().err
    (tmp_path / "results.jsonl").write_text('{"cell": "small", "variant": "small"}\n')
    with pytest.raises(SystemExit):
        depth.main()
    assert "no runs of several depths: compare with --vary=model.layers" in capsys.readouterr().err
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    depth.main()
    table = (tmp_path / "out" / "depth.md").read_text()
    assert "| growing | 0.000" in table and "| 10 |" in table
    assert (tmp_path / "out" / "depth.svg").stat().st_size > 10_000
