"""A comparison from the command line: a grid that is stopped in its middle and goes on, and what its report says."""

import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest

import main
from configs.methods import METHODS
from jaxstab.compare import cells, programs, report, running
from jaxstab.config import UserError
from jaxstab.logging import read_metrics
from jaxstab.train import workdir as workdirs

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

        def interrupted(config, directory, *others):
            if len(stopped) == 2:
                signal.raise_signal(signal.SIGINT)
            stopped.append(directory.name)
            train(config, directory, *others)

        patch.setattr(cells, "train", interrupted)
        assert main.main(command(tiny, workdir)) == 130
    assert len(list(workdir.glob("cells/*/result.json"))) == 2
    assert "2 of 8 runs;" in (workdir / "report.md").read_text()
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
    for title in ("Each at its own best learning rate", "Over all learning rates", "Cost", "Promotion", "Spike scores"):
        assert f"## {title}" in markdown and title in page
    for title in ("loss by learning rate", "## Update ratios", "## Norms", "## Loss and gradient norm"):
        assert title in markdown  # the numbers of the figures
    for path in ("figures/update-ratios.svg", "figures/loss-against-learning-rate.svg"):
        assert f"]({path})" in markdown and (compared / path).read_text().startswith("<svg")
    assert "not measured: it takes stability.measure=full" in markdown
    assert "## validation_perplexity by learning rate" in markdown and "Perplexity beside" not in markdown
    assert re.search(r"\| wesar \| 0.0\d+.* \| [\d.]+ \[[\d.]+, [\d.]+\] \(n=2\) \|", markdown)
    assert page.count("<svg") == 4 and not re.search(r"(src|href)=.http", page)  # it needs nothing else
    assert "8 of 8 runs" in markdown and "stability.measure=full" in page  # what the figures of variances lack
    times = json.loads((compared / "step_times" / "wesar.json").read_text())
    assert times["ratio"][3] == 3 and 0.02 < times["control"][0] < 50  # rounds, and the baseline beside itself
    assert re.search(r"\| wesar \| [\d,]+ \| [\d.]+ \| [\d.]+ \[[\d.]+, [\d.]+\] \(n=3\) \|", markdown)


def test_a_run_that_diverges_is_a_result(tiny, tmp_path):
    program, *rest = tiny.command(tmp_path / "grid", "--methods=small", "--learning_rates=1e-3,1e30")
    assert main.main([program, "compare", *rest, "--config.optimizer.clip.method=none"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "grid" / "results.jsonl").read_text().splitlines()]
    assert [row["diverged"] for row in rows] == [False, True]
    assert "1 of 2" in (tmp_path / "grid" / "report.md").read_text()


def test_cells_of_one_program_compile_it_once(tiny, tmp_path):
    program, *rest = tiny.command(tmp_path / "grid", "--methods=small", "--learning_rates=1e-3,2e-3")
    with pytest.MonkeyPatch.context() as patch:
        built, build = [], programs.build
        patch.setattr(programs, "build", lambda *given: built.append(given) or build(*given))
        assert main.main([program, "compare", *rest, "--vary=optimizer.weight_decay=0,0.1"]) == 0
    assert len(built) == 2  # one for the cells, one for the baseline that steps are timed beside
    rows = [json.loads(line) for line in (tmp_path / "grid" / "results.jsonl").read_text().splitlines()]
    assert sorted(row["optimizer.weight_decay"] for row in rows) == [0.0, 0.0, 0.1, 0.1]


def test_processes_share_a_workdir_and_one_command_after_the_other_adds_to_its_report(tiny, tmp_path, capsys):
    workdir = tmp_path / "grid"
    busy = workdir / "cells" / "he-0.001-seed1"
    busy.mkdir(parents=True)
    with workdirs.alone(busy):  # as another process does
        program, *rest = tiny.command(workdir, "--methods=he", "--learning_rates=1e-3,1e-2", "--seeds=1")
        assert main.main([program, "compare", *rest]) == 0
    printed = capsys.readouterr().out
    assert "another process is at work on it" in printed and "1 of 2 runs done" in printed
    program, *rest = tiny.command(workdir, "--methods=wesar", "--learning_rates=1e-3", "--seeds=1", "--cells=0/1")
    assert main.main([program, "compare", *rest]) == 0
    rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    assert [row["cell"] for row in rows] == ["wesar-0.001-seed1", "he-0.01-seed1"]
    markdown = " ".join((workdir / "report.md").read_text().split())
    assert "1 of 1 runs, and 1 of earlier grids" in markdown and "difference to he" in markdown
    assert main.main([program, "compare", *rest, "--threshold=0.1"]) == 1
    assert "was begun with 0.05" in capsys.readouterr().err
    law = json.loads((workdir / "comparison.json").read_text())
    law["law"]["threshold"] = 0.1  # as a first command with --threshold=0.1 writes it
    (workdir / "comparison.json").write_text(json.dumps(law))
    assert main.main([program, "compare", *rest]) == 0 and "p <= 0.1 by" in " ".join(
        (workdir / "report.md").read_text().split()
    )
    assert main.main([program, "compare", *rest, "--threshold=0.05"]) == 1
    assert "was begun with 0.1" in capsys.readouterr().err
    assert main.main([program, "compare", *rest, "--config.optimizer.warmup=3"]) == 1
    assert "optimizer.warmup (there 2, here 3)" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", ["cells/wesar-0.01-seed2/result.json", "step_times/wesar.json"])
def test_a_damaged_file_of_an_earlier_grid_is_one_line(compared, tiny, tmp_path, capsys, damaged):
    workdir = shutil.copytree(compared, tmp_path / "copy")
    (workdir / damaged).write_text('{"cell": ')
    program, *rest = tiny.command(workdir, *GRID, "--methods=small", "--learning_rates=1e-3", "--seeds=1")
    assert main.main([program, "compare", *rest]) == 1
    assert re.search(rf"{damaged} can't be read .*; delete it, and it is made again\n$", capsys.readouterr().err)


def test_a_report_without_its_baseline_says_so(tiny, tmp_path):
    workdir = tmp_path / "grid"
    program, *rest = tiny.command(workdir, "--methods=small,he", "--seeds=1", "--cells=1/2")
    assert main.main([program, "compare", *rest]) == 0
    markdown = " ".join((workdir / "report.md").read_text().split())  # whatever lines it has
    assert "No run of the baseline, small, is done" in markdown and "| he |" in markdown


def test_until_promotion_runs_what_the_law_needs(tiny, tmp_path, capsys):
    grid = ("--methods=small,wesar", "--learning_rates=1e-3,1e-2", "--until=promotion")
    program, *rest = tiny.command(tmp_path / "grid", *grid)
    assert main.main([program, "compare", *rest, "--seeds=1,2"]) == 1
    assert "--until=promotion needs 7 --seeds or more" in capsys.readouterr().err
    assert main.main([program, "compare", *rest, "--seeds=1,2,3", "--threshold=0.5"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "grid" / "results.jsonl").read_text().splitlines()]
    first = {(row["method"], row["learning_rate"]): row["validation_loss"] for row in rows if row["seed"] == 1}
    best = {method: min((loss, rate) for (name, rate), loss in first.items() if name == method) for method, _ in first}
    decided = ["small"] + ["wesar"] * (best["wesar"][0] <= best["small"][0])
    others = {(row["method"], row["learning_rate"], row["seed"]) for row in rows if row["seed"] != 1}
    assert len(first) == 4 and others == {(name, best[name][1], seed) for name in decided for seed in (2, 3)}
    assert "4 of 4 runs to be made here" in (printed := capsys.readouterr().out)
    assert re.search(r"a trial step takes [\d.e-]+ s and \d+ MB, compiling it [\d.e-]+ s: about \d+ min", printed)


def test_what_can_be_run_is_where_other_runs_cannot_be(tiny, tmp_path, capsys):
    program, *rest = tiny.command(tmp_path / "grid", "--methods=small", "--learning_rates=1e-3,2e-3")
    assert main.main([program, "compare", *rest, "--vary=data.field=body,text"]) == 1
    rows = [json.loads(line) for line in (tmp_path / "grid" / "results.jsonl").read_text().splitlines()]
    assert [row["data.field"] for row in rows] == ["text", "text"]
    out, err = (" ".join(each.split()) for each in capsys.readouterr())
    assert "1/4 small-0.001-seed0-data.field=body: can't be run: " in out and "4/4 small-0.002-seed0" in out
    assert "small-0.001-seed0-data.field=body can't be run, nor can 1 other: " in err


def test_a_baseline_without_a_program_is_told_and_the_others_run_and_are_judged(tiny, tmp_path, capsys):
    grid = ("--methods=qk_norm,small,he", "--learning_rates=1e-3", "--seeds=1,2,3")
    program, *rest = tiny.command(tmp_path / "grid", *grid, "--config.optimizer.projection.method=qk_clip")
    assert main.main([program, "compare", *rest, "--until=promotion", "--threshold=0.5"]) == 1
    rows = [json.loads(line) for line in (tmp_path / "grid" / "results.jsonl").read_text().splitlines()]
    assert [row["cell"] for row in rows] == ["small-0.001-seed1", "he-0.001-seed1"]
    out, err = (" ".join(each.split()) for each in capsys.readouterr())
    assert "qk_norm-0.001-seed1: can't be run: " in out and "the step of small isn't timed: " in out
    assert "qk_norm-0.001-seed1 can't be run: optimizer.projection" in err and "aren't done" not in out
    (tmp_path / "grid" / "report.md").unlink()
    assert main.main([program, "compare", *rest, "--until=promotion", "--threshold=0.5"]) == 1  # all else is done
    out, err = (" ".join(each.split()) for each in capsys.readouterr())
    assert "qk_norm-0.001-seed1 can't be run: optimizer.projection" in err and "2 of 9 runs done" in out
    assert (tmp_path / "grid" / "report.md").is_file()


@pytest.mark.parametrize("seeds", ["1,2", "3"])
def test_a_method_that_has_changed_since_its_runs_is_refused(compared, tiny, tmp_path, capsys, monkeypatch, seeds):
    workdir = shutil.copytree(compared, tmp_path / "copy")
    monkeypatch.setitem(METHODS, "wesar", {**METHODS["wesar"], "reparam.wesar.sigma": 0.05})
    assert main.main([*command(tiny, workdir), f"--seeds={seeds}"]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "wesar-0.001-seed1 holds a run with another config" in told and "reparam.wesar.sigma (there 0.0" in told


def test_the_time_of_a_step_that_is_lost_is_taken_again(compared, tiny, tmp_path):
    workdir = shutil.copytree(compared, tmp_path / "copy")
    (workdir / "step_times" / "wesar.json").unlink()
    assert main.main(command(tiny, workdir)) == 0
    assert json.loads((workdir / "step_times" / "wesar.json").read_text())["ratio"][3] == 3


def test_a_report_is_written_on_the_way_and_ends_nothing_where_it_cannot_be(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running, "REPORTED", -1.0)
    written, write = [], report.write

    def once(grid, rows, *others):
        written.append(len(rows))
        if len(written) == 1:
            raise UserError("the disk is full")
        write(grid, rows, *others)

    monkeypatch.setattr(report, "write", once)
    program, *rest = tiny.command(tmp_path / "grid", "--methods=small,he", "--learning_rates=1e-3", "--seeds=1")
    assert main.main([program, "compare", *rest]) == 0
    assert written == [1, 2] and "no report is written: the disk is full" in capsys.readouterr().out


def test_a_workdir_that_another_command_begins_anew_is_left(tiny, tmp_path, capsys, monkeypatch):
    train = cells.train

    def begun_anew(config, directory, *others):
        train(config, directory, *others)
        path = tmp_path / "grid" / "comparison.json"
        path.write_text(path.read_text().replace('"threshold": 0.05', '"threshold": 0.5'))

    monkeypatch.setattr(cells, "train", begun_anew)
    program, *rest = tiny.command(tmp_path / "grid", "--methods=small,he", "--learning_rates=1e-3", "--seeds=1")
    assert main.main([program, "compare", *rest]) == 1
    assert re.search("another command has begun .*grid anew", capsys.readouterr().err)


def test_a_run_whose_device_fails_is_told_and_counts_nowhere(tiny, tmp_path, capsys, monkeypatch):
    train = cells.train

    def failing(config, *others):
        train(config, *others)
        if config.optimizer.learning_rate == 2e-3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand where")

    monkeypatch.setattr(cells, "train", failing)
    program, *rest = tiny.command(tmp_path / "grid", "--methods=small", "--learning_rates=1e-3,2e-3", "--seeds=1")
    assert main.main([program, "compare", *rest]) == 0
    rows = [json.loads(line) for line in (tmp_path / "grid" / "results.jsonl").read_text().splitlines()]
    assert [(row["failed"], row["diverged"]) for row in rows] == [(False, False), (True, False)]
    assert "small-0.002-seed1: failed, RESOURCE_EXHAUSTED: out of memory" in " ".join(capsys.readouterr().out.split())
    markdown = (tmp_path / "grid" / "report.md").read_text()
    assert "| small-0.002-seed1 | 8 | RESOURCE_EXHAUSTED: out of memory |" in markdown and "0 of 1" in markdown


def test_what_a_user_can_mend_is_no_result_and_binds_nothing(tiny, tmp_path, capsys):
    workdir = tmp_path / "grid"
    program, *rest = tiny.command(workdir, "--methods=small", "--learning_rates=1e-3", "--seeds=1")
    assert main.main([program, "compare", *rest, "--config.data.files=missing.jsonl"]) == 1
    assert main.main([program, "compare", *rest]) == 0  # the workdir isn't bound to what has never run
    (result,) = workdir.glob("cells/*/result.json")
    kept = json.loads(result.read_text())
    result.unlink()
    (result.parent / "config.json").rename(tmp_path / "config.json")
    (result.parent / "config.json").write_text("{")
    assert main.main([program, "compare", *rest]) == 1
    assert "can't be run: " in " ".join(capsys.readouterr().out.split()) and not result.exists()
    (tmp_path / "config.json").rename(result.parent / "config.json")
    assert main.main([program, "compare", *rest]) == 0
    assert json.loads(result.read_text()) == kept
    assert main.main([program, "compare", *rest, "--config.optimizer.weight_decay=0.5"]) == 1
    assert "optimizer.weight_decay (there 0.01, here 0.5)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--methods=",), "--methods is missing"),
        (("--methods=small", "--until=dawn"), "--until=dawn isn't known"),
        (("--methods=small", "--threshold=5"), "--threshold=5 must lie between 0 and 1"),
        (("--methods=small", "--cells=2/2"), "--cells=2/2 must be i/n"),
        (("--methods=small", "--config.data.files=missing.jsonl"), "missing.jsonl"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tiny, tmp_path, capsys, given, told):
    program, *rest = tiny.command(tmp_path / "grid")
    assert main.main([program, "compare", *rest, *given]) == 1
    printed = capsys.readouterr().err.strip()
    assert told in printed and "\n" not in printed
