"""A comparison from the command line: a grid that is stopped in its middle and goes on, and what its report says."""

import json
import re
import signal

import numpy as np
import pytest

import main
from jaxstab.compare import cells
from jaxstab.logging import read_metrics

GRID = ("--methods=small,wesar", "--learning_rates=1e-3,1e-2", "--seeds=1,2", "--config.reparam.method=identity")


def command(tiny, workdir, *more):
    program, *rest = tiny.command(workdir, *GRID, *more)
    return [program, "compare", *rest]


@pytest.fixture(scope="module")
def compared(tiny, tmp_path_factory):
    """The workdir of a grid that a signal stopped in its third cell, and that was started again."""
    workdir, stopped = tmp_path_factory.mktemp("compared") / "grid", []
    with pytest.MonkeyPatch.context() as patch:
        train = cells.train

        def interrupted(config, directory, console):
            if len(stopped) == 2:
                signal.raise_signal(signal.SIGINT)
            stopped.append(directory.name)
            train(config, directory, console)

        patch.setattr(cells, "train", interrupted)
        assert main.main(command(tiny, workdir)) == 130
    assert len(list(workdir.glob("cells/*/result.json"))) == 2
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("cells/*/result.json")}
    assert main.main(command(tiny, workdir)) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())  # what was done is left alone
    return workdir


def test_a_grid_has_a_row_for_every_cell_with_what_its_run_came_to(compared, tiny, tmp_path):
    rows = [json.loads(line) for line in (compared / "results.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["cell"] for row in rows}) == 8 and not any(row["diverged"] for row in rows)
    row = next(row for row in rows if row["cell"] == "wesar-0.01-seed2")
    assert tiny.run(tmp_path / "alone", "--config.optimizer.learning_rate=0.01", *_wesar(seed=2)) == 0
    lines = read_metrics(tmp_path / "alone" / "metrics.jsonl")
    assert (
        row["validation_loss"] == [line for line in lines if "eval/validation/loss" in line][-1]["eval/validation/loss"]
    )
    assert row["initial_loss"] == lines[0]["train/loss"]


def _wesar(seed):
    keys = {"init.method": "he", "model.embedding.method": "unit", "train.seed": seed, "data.seed": seed}
    return [f"--config.{key}={value}" for key, value in keys.items()]


def test_pairs_share_their_batches_and_their_effective_weights(tiny, tmp_path):
    program, *rest = tiny.command(tmp_path / "grid", "--methods=he,wesar", "--seeds=3")
    assert main.main([program, "compare", *rest]) == 0
    first, second = (json.loads(line) for line in (tmp_path / "grid" / "results.jsonl").read_text().splitlines())
    np.testing.assert_allclose(first["initial_loss"], second["initial_loss"], rtol=1e-5)


def test_the_report_has_every_method_and_its_figures(compared):
    markdown, page = (compared / "report.md").read_text(), (compared / "report.html").read_text()
    for title in ("Each at its own best learning rate", "Over all learning rates", "Cost", "loss by learning rate"):
        assert title in markdown and title in page
    assert re.search(r"\| wesar \| 0.0\d+.* \| [\d.]+ \[[\d.]+, [\d.]+\] \(n=2\) \|", markdown)
    assert page.count("<svg") == 2 and not re.search(r"(src|href)=.http", page)  # it needs nothing else
    assert "8 of 8 runs" in markdown


def test_a_run_that_diverges_is_a_result(tiny, tmp_path):
    program, *rest = tiny.command(tmp_path / "grid", "--methods=small", "--learning_rates=1e-3,1e30")
    assert main.main([program, "compare", *rest, "--config.optimizer.clip.method=none"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "grid" / "results.jsonl").read_text().splitlines()]
    assert [row["diverged"] for row in rows] == [False, True]
    assert "1 of 2" in (tmp_path / "grid" / "report.md").read_text()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--methods=",), "--methods is missing"),
        (("--methods=small", "--cells=2/2"), "--cells=2/2 must be i/n"),
        (("--methods=small", "--config.data.files=missing.jsonl"), "missing.jsonl"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tiny, tmp_path, capsys, given, told):
    program, *rest = tiny.command(tmp_path / "grid")
    assert main.main([program, "compare", *rest, *given]) == 1
    printed = capsys.readouterr().err.strip()
    assert told in printed and "\n" not in printed
