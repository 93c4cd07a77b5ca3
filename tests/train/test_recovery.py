"""Roll-backs, skips and stops of whole runs: exact, also when killed in their middle.

As a script, this file is the run that is hurt: it marks batches, patches the place where SIGKILL is to land, and calls
main.
"""

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import main
from jaxstab.config import UserError
from jaxstab.data import Batches
from jaxstab.diagnose import find_causes, read_history
from jaxstab.logging import in_force, read_measurements, read_metrics
from jaxstab.stability import StabilityConfig, spikes
from jaxstab.train import incidents, journal, messages, recovery, step_io
from jaxstab.train.checkpoint import Checkpoints
from tests.train import faults

ROOT = Path(__file__).parents[2]
MARK = 300  # the tokenizer's ids end at 256
SIZE = 4  # records in tiny.py's batches
MARKED = ["--config.model.vocabulary=304", "--config.reparam.method=sigma_reparam"]
ROLLBACK = [
    *MARKED,
    "--config.stability.on_nonfinite=rollback",
    "--config.stability.rollback_steps=2",
    "--config.stability.skip_batches=2",
    "--config.checkpoint.keep_last=3",
]


def hurt(patch, marks):
    """Marks batches {number from 0: kind}, wherever they are trained on."""
    faults.install(patch, MARK)
    records = Batches.records

    def marked(self, position, count, *rest):
        tokens = records(self, position, count, *rest)
        if kind := marks.get(position // SIZE):
            tokens = tokens.copy()
            tokens[-1, 0] = MARK + faults.KINDS.index(kind)
        return tokens

    patch(Batches, "records", marked)


def kill_after(patch, thing, name):
    real = getattr(thing, name)

    def patched(*arguments, **options):
        result = real(*arguments, **options)
        if name != "abandon" or (arguments[0]._directory.parent / journal.FILE).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    patch(thing, name, patched)


PLACES = {
    "the journal": lambda patch: kill_after(patch, journal, "append"),
    "the deletion of the abandoned branch": lambda patch: kill_after(patch, Checkpoints, "abandon"),
}


@pytest.fixture
def hurting(monkeypatch):
    return lambda marks: hurt(monkeypatch.setattr, marks)


@pytest.fixture(scope="module")
def rolled_back(tiny, tmp_path_factory):
    """The workdir of a run that was rolled back once, at step 6, from batch 5, and never killed."""
    workdir = tmp_path_factory.mktemp("rolled_back") / "run"
    with pytest.MonkeyPatch.context() as patch:
        hurt(patch.setattr, {5: "nan_loss"})
        assert tiny.run(workdir, *ROLLBACK) == 0
    return workdir


def in_force_of(tiny, workdir):
    return [{**line, "attempt": 0} for line in in_force(tiny.lines(workdir))]


def assert_same_run(tiny, workdir, reference):
    """Asserts that the branches that are in force are the same, bit for bit."""
    assert [line["step"] for line in in_force_of(tiny, workdir) if "train/loss" in line] == list(range(1, 9))
    assert in_force_of(tiny, workdir) == in_force_of(tiny, reference)
    tiny.assert_same_arrays(workdir, reference)
    measured, expected = read_measurements(workdir), read_measurements(reference)
    assert measured.keys() == expected.keys() and measured
    for name, (steps, values) in measured.items():
        assert steps.tolist() == list(range(1, 9)) and values.tobytes() == expected[name][1].tobytes(), name


def test_a_rolled_back_run_is_the_run_from_which_the_batches_were_left_out(tiny, rolled_back, tmp_path, hurting):
    hurting({})  # none is marked; the program is the same
    (tmp_path / journal.FILE).write_text('{"kind": "skip", "skip": [5, 7]}\n')
    assert tiny.run(tmp_path, *ROLLBACK) == 0
    assert_same_run(tiny, rolled_back, tmp_path)
    (entry,) = map(json.loads, (rolled_back / journal.FILE).read_text().splitlines())
    assert (entry["attempt"], entry["step"], entry["to"], entry["skip"]) == (1, 6, 4, [5, 7])
    assert any(path.startswith("reparam/") for path in tiny.arrays(rolled_back))


def test_no_identity_is_broken_by_a_roll_back(rolled_back):
    """Neither its checkpoint's state, nor the batches that it leaves out, nor its rate is a fault."""
    history = read_history(rolled_back)
    assert history.seams and history.journal.rollbacks and history.sketches("weight")
    assert [each.cause for each in find_causes(history)] == ["none"]


def test_what_the_abandoned_branch_came_to_stays_on_record(tiny, rolled_back):
    lines = [(line["attempt"], line["step"]) for line in tiny.steps(rolled_back)]
    assert lines == [(0, step) for step in range(1, 7)] + [(1, step) for step in range(5, 9)]
    assert tiny.checkpoints(rolled_back) == {"4", "6", "8"}
    path, record = incidents.read(rolled_back, "6")
    assert record["response"] == "rollback" and record["checkpoint"] == 4 and record["batch"] == 5
    assert "not finite" in (path / "summary.md").read_text()
    assert [line["step"] for line in read_metrics(path / "metrics.jsonl")] == list(range(1, 7))
    assert {tuple(steps) for steps, _ in read_measurements(path).values()} == {tuple(range(1, 7))}
    assert np.load(path / "batch.npy")[-1, 0] == MARK, "the very tokens"
    assert (path / "batch.txt").read_text().count("--- record") == SIZE


@pytest.mark.parametrize("place", PLACES)
def test_killed_in_the_middle_of_a_roll_back(place, tiny, rolled_back, tmp_path, hurting):
    workdir = tmp_path / "run"
    command = [sys.executable, __file__, place, *tiny.command(workdir, *ROLLBACK)[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed
    assert journal.read(workdir).attempt == 1
    assert tiny.steps(workdir)[-1]["step"] == 6, "nothing of the next attempt is there"
    hurting({5: "nan_loss"})
    assert tiny.run(workdir, *ROLLBACK) == 0
    assert_same_run(tiny, workdir, rolled_back)
    assert str(tiny.lines(workdir)) == str(tiny.lines(rolled_back)), "NaNs are alike as text"


def test_one_nan_costs_exactly_one_step_under_skip(tiny, tmp_path, hurting, capsys):
    hurting({2: "nan_loss"})
    assert tiny.run(tmp_path / "run", *MARKED, "--config.stability.on_nonfinite=skip") == 0
    steps = tiny.steps(tmp_path / "run")
    assert [line["train/skipped"] for line in steps] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert tiny.arrays(tmp_path / "run")["step"] == 7
    assert "step 3: the loss, a gradient or the update was not finite (skip)" in capsys.readouterr().out
    assert incidents.read(tmp_path / "run", "3")[1]["checkpoint"] == 2
    assert "2" in tiny.checkpoints(tmp_path / "run"), "pinned"


def test_a_spike_that_is_foretold_is_told_once_in_a_while(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(spikes, "FORETELLS", -np.inf)
    monkeypatch.setattr(spikes, "LEAST", 2)
    monkeypatch.setattr(messages, "HORIZON", 4)
    assert tiny.run(tmp_path / "run", *MARKED, "--config.optimizer.weight_decay=0.0123") == 0  # a program of its own
    assert [line["stability/foretold"] for line in tiny.steps(tmp_path / "run")] == [1.0] * 8
    told = capsys.readouterr().out
    assert [step for step in range(1, 9) if f"step {step}: a spike may be near" in told] == [1, 5]


def test_a_stopped_run_goes_on_under_another_policy(tiny, tmp_path, hurting, capsys):
    hurting({2: "inf_gradient"})
    assert tiny.run(tmp_path / "run", *MARKED) == 1
    assert "not finite at step 3; the state before it is checkpoint 2" in capsys.readouterr().err
    assert tiny.run(tmp_path / "run", *MARKED, "--config.stability.on_nonfinite=skip") == 0
    assert tiny.run(tmp_path / "other", *MARKED, "--config.stability.on_nonfinite=skip") == 0
    tiny.assert_same_arrays(tmp_path / "run", tmp_path / "other")


def test_roll_backs_are_bounded(tiny, tmp_path, hurting, capsys):
    hurting(dict.fromkeys(range(5, 40), "nan_loss"))
    assert tiny.run(tmp_path / "run", *ROLLBACK, "--config.stability.max_rollbacks=2") == 1
    assert "not finite at step 6, after 2 roll-backs" in capsys.readouterr().err
    assert journal.read(tmp_path / "run").attempt == 2


def test_a_spike_early_in_a_run_rolls_back_to_the_initial_state(tiny, tmp_path, hurting):
    hurting({1: "nan_loss"})
    assert tiny.run(tmp_path / "run", *ROLLBACK) == 0
    assert journal.read(tmp_path / "run").rollbacks[0].to == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / journal.FILE).write_text('{"kind": "skip", "skip": [1, 3]}\n')
    assert tiny.run(tmp_path / "other", *ROLLBACK) == 0
    assert_same_run(tiny, tmp_path / "run", tmp_path / "other")


def test_the_rate_and_the_norm_are_lowered_for_a_while(tiny, tmp_path, hurting, monkeypatch):
    hurting({5: "nan_loss"})
    given, hypers = [], step_io.hypers
    monkeypatch.setattr(step_io, "hypers", lambda program, *rates: given.append(rates) or hypers(program, *rates))
    eased = "rollback_learning_rate=0.5", "rollback_max_norm=0.25", "rollback_while=2"
    assert tiny.run(tmp_path / "run", *ROLLBACK, *(f"--config.stability.{each}" for each in eased)) == 0
    assert given == [(1.0, 0.0), (0.5, 0.25), (1.0, 0.0)], "kept by step: 1-6, then 5-6, then 7-8"
    rates = {(line["attempt"], line["step"]): line["train/learning_rate"] for line in tiny.steps(tmp_path / "run")}
    assert rates[1, 5] == pytest.approx(rates[0, 5] / 2) and rates[1, 6] == pytest.approx(rates[0, 6] / 2)


def metrics(finite=1.0, skipped=0.0, halted=0.0):
    skipped = max(skipped, halted)
    steps = {"train/finite": finite, "train/skipped": skipped, "train/halted": halted, "train/loss": 9.0}
    deviations = {"stability/deviation/loss": 7.2, "stability/deviation/grad_norm": -0.5}
    return steps | deviations


BEFORE = "loss 9 was 7.2 standard deviations from its mean"


@pytest.mark.parametrize(
    ("options", "scalars", "response", "replay_from"),
    [
        ({"on_spike": "log"}, metrics(), "log", 400),
        ({"on_spike": "skip"}, metrics(skipped=1.0), "skip", 400),
        ({"on_spike": "skip"}, metrics(), "taken as a new level", 400),
        ({"on_spike": "stop"}, metrics(halted=1.0), "stop", 400),
        ({"on_spike": "rollback", "rollback_steps": 150}, metrics(halted=1.0), "rollback", 200),
        ({"on_spike": "rollback", "rollback_steps": 999}, metrics(halted=1.0), "rollback", 0),
        ({"on_spike": "rollback", "max_rollbacks": 1}, metrics(halted=1.0), "stop", 400),
        ({"on_spike": "log", "on_nonfinite": "skip"}, metrics(0.0, halted=1.0), "stop", 400),
    ],
)
def test_what_is_done_follows_from_the_policy_and_the_verdict(options, scalars, response, replay_from):
    before = journal.Rollback(1, 300, 200, (299, 320), 1.0, 0.0, 700, "why")
    known = journal.Journal(((299, 320),), (before,))
    action = recovery.decide(StabilityConfig(**options), known, [0, 200, 400], 421, scalars)
    assert (action.response, action.replay_from) == (response, replay_from)
    assert action.reason == (BEFORE if scalars["train/finite"] else "the loss, a gradient or the update was not finite")
    assert (action.rollback is not None) == (response == "rollback")


def test_a_step_that_was_taken_before_it_was_judged_has_no_state_before_it_to_be_saved():
    late = metrics(0.0, halted=1.0) | {"train/skipped": 0.0}
    for scalars in (late, metrics(0.0, halted=1.0)):
        action = recovery.decide(StabilityConfig(on_nonfinite="stop"), journal.Journal(), [400], 421, scalars)
        assert (action.response, action.replay_from, action.was_taken) == ("stop", 400, scalars is late)


def test_a_roll_back_says_where_to_and_past_what():
    options = {"skip_batches": 30, "skip_before": 5, "rollback_learning_rate": 0.5, "rollback_while": 70}
    config = StabilityConfig(on_spike="rollback", rollback_steps=100, **options)
    known = journal.Journal(((10, 15),))
    action = recovery.decide(config, known, [100, 200, 300], 301, metrics(halted=1.0))
    assert action.rollback == journal.Rollback(1, 301, 200, (300, 335), 0.5, 0.0, 270, BEFORE)
    close = recovery.decide(config, known, [100, 200, 300], 203, metrics(halted=1.0))
    assert close.rollback.to == 100 and close.rollback.skip == (202, 237)
    config = dataclasses.replace(config, rollback_steps=1)
    assert recovery.decide(config, known, [300], 303, metrics(halted=1.0)).rollback.skip == (305, 337), "not behind it"


def test_an_incident_that_cannot_be_written_down_is_a_notice(tiny, tmp_path, hurting, monkeypatch, capsys):
    def write(*_):
        raise OSError(28, "No space left on device")

    hurting({2: "nan_loss"})
    monkeypatch.setattr(incidents.Incidents, "write", write)
    assert tiny.run(tmp_path / "run", *MARKED, "--config.stability.on_nonfinite=skip") == 0
    assert "(skip); it could not be written down ([Errno 28] No space left on device)" in capsys.readouterr().out


def test_ranges_are_stepped_over():
    plan = journal.Journal(skipped=((3, 5), (8, 9)))
    assert [plan.batch_of(step) for step in range(1, 9)] == [0, 1, 2, 5, 6, 7, 9, 10]


WRITTEN = journal.Rollback(1, 20, 10, (19, 21), 1.0, 0.0, 10, "why")
LINE = {"kind": "rollback", **dataclasses.asdict(WRITTEN)}
NO_LINES = [
    b'{"kind": "skip"}',
    b'{"kind": "skip", "skip": [4, 2]}',
    b'{"kind": "skip", "skip": [4, Infinity]}',
    b'{"kind": "skip", "skip": [4, 1e999]}',
    b'{"kind": "skip", "skip": [4.5, 6]}',
    b'{"kind": "skip", "skip": [4, 99999999999999999999]}',
    b'{"kind": "skip", "skip": [4, 6], "step": 3}',
    b'{"kind": ' * 50_000,
    '{"kind": "skip", "skip": [4, 6]}'.encode("utf-16"),
    b"\0" * 512,
    b"[]",
    b"what?",
    *(json.dumps({**LINE, **change}).encode() for change in (
        {"attempt": 2}, {"step": -1}, {"to": "10"}, {"until": 1.5}, {"learning_rate": math.inf}, {"max_norm": "x"},
        {"other": 1},
    )),
]  # fmt: skip


@pytest.mark.parametrize("line", NO_LINES, ids=range(len(NO_LINES)))
def test_a_journal_that_is_none_is_named(line, tmp_path):
    (tmp_path / journal.FILE).write_bytes(b'{"kind": "skip", "skip": [5, 7]}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"interventions\.jsonl, line [23] is no intervention") as error:
        journal.read(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_last_line_without_its_end_counts(tmp_path):
    """As somebody's editor leaves it, or a kill at its last byte."""
    (tmp_path / journal.FILE).write_text('{"kind": "skip", "skip": [5, 7]}')
    assert journal.read(tmp_path, pytest.fail) == journal.Journal(skipped=((5, 7),))
    journal.append(tmp_path, WRITTEN)
    assert journal.read(tmp_path, pytest.fail) == journal.Journal(((5, 7), (19, 21)), (WRITTEN,))


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    (tmp_path / journal.FILE).write_text('{"kind": "skip", "skip": [5, 7]}\n')
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"interventions\.jsonl can't be written: No space left on device"):
        journal.append(tmp_path, WRITTEN)
    assert [path.name for path in tmp_path.iterdir()] == [journal.FILE]
    assert journal.read(tmp_path) == journal.Journal(skipped=((5, 7),))


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_torn_line_has_not_taken_effect_and_is_overwritten(tmp_path):
    whole = '{"kind": "skip", "skip": [5, 7]}\n'
    (tmp_path / journal.FILE).write_text(whole + '{"kind": "rollb')
    told = []
    assert journal.read(tmp_path, told.append) == journal.Journal(skipped=((5, 7),))
    assert told == [
        f"{tmp_path}/interventions.jsonl, line 2, the last one, was torn while it was written, and doesn't count"
    ]
    rollback = journal.Rollback(1, 20, 10, (19, 21), 1.0, 0.0, 10, "why")
    journal.append(tmp_path, rollback)
    assert journal.read(tmp_path) == journal.Journal(((5, 7), (19, 21)), (rollback,))


def test_a_range_changed_behind_a_checkpoint_is_refused(tiny, tmp_path, capsys):
    assert tiny.run(tmp_path) == 0
    (tmp_path / journal.FILE).write_text('{"kind": "skip", "skip": [2, 4]}\n')
    assert tiny.run(tmp_path, "--config.train.extend=2") == 1
    assert "checkpoint 8 stands at record 32, interventions.jsonl at 40" in capsys.readouterr().err


if __name__ == "__main__":
    chosen, *rest = sys.argv[1:]
    hurt(setattr, {5: "nan_loss"})
    PLACES[chosen](setattr)
    sys.exit(main.main(["main.py", *rest]))
