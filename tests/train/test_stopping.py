"""How a run stops, what it says then, and how it goes on."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxstab.config import ConfigError, UserError
from jaxstab.logging import RunLogger, read_metrics
from jaxstab.train import evaluation, loop, messages, workdir
from jaxstab.train.config import Config, default_config, resolve
from jaxstab.train.program import build
from jaxstab.train.workdir import CONFIG, claim

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copied(unbroken, tmp_path):
    """A complete run, to be changed."""
    return Path(shutil.copytree(unbroken, tmp_path / "run"))


def output(capsys):
    """What went to stdout, and the one line on stderr that isn't progress."""
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("Tokenising")]
    assert len(lines) <= 1
    return captured.out, "".join(lines)


def send(monkeypatch, *numbers, step):
    """Lets the process get signals while a step is reported; the step after it is under way then."""

    def train(self, at, *rest, real=RunLogger.train):
        real(self, at, *rest)
        if at == step:
            for number in numbers:
                signal.raise_signal(number)  # handled before the next one

    monkeypatch.setattr(RunLogger, "train", train)


@pytest.mark.parametrize(
    ("number", "told_step", "overrides", "kept"),
    [
        (signal.SIGINT, 3, [], {"2", "3"}),
        (signal.SIGTERM, 4, ["--config.checkpoint.every=0"], {"5"}),  # step 5 is under way when 4 is reported
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on_exactly(
    number, told_step, overrides, kept, tiny, unbroken, tmp_path, monkeypatch, capsys
):
    workdir, handler, step = tmp_path / "run", signal.getsignal(number), max(map(int, kept))
    with monkeypatch.context() as patched:
        send(patched, number, step=told_step)
        assert tiny.run(workdir, *overrides) == 128 + number
    _, line = output(capsys)
    assert line.endswith(f"stopped by {number.name} after step {step}, which is saved; the same command continues")
    assert tiny.checkpoints(workdir) == kept
    assert signal.getsignal(number) == handler
    assert tiny.run(workdir, *overrides) == 0
    out, _ = output(capsys)
    assert f"Continuing in {workdir}" in out and f"steps {step} to 8" in out
    tiny.assert_same_end(workdir, unbroken)


def test_a_signal_is_answered_between_two_batches_of_an_evaluation(tiny, unbroken, tmp_path, monkeypatch, capsys):
    def evaluate(sums_of, *rest, real=evaluation.evaluate):
        def interrupted(*batch):
            batches.append(batch)
            signal.raise_signal(signal.SIGTERM)
            return sums_of(*batch)

        return real(interrupted, *rest)

    batches = []
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "evaluate", evaluate)
        assert tiny.run(tmp_path / "run") == 128 + signal.SIGTERM
    assert len(batches) == 1, "of two"
    assert output(capsys)[1].endswith("stopped by SIGTERM after step 3, which is saved; the same command continues")
    assert tiny.checkpoints(tmp_path / "run") == {"2", "3"}, "3 is no step of checkpoint.every=2"
    assert tiny.run(tmp_path / "run") == 0
    tiny.assert_same_end(tmp_path / "run", unbroken)


@pytest.mark.parametrize(("overrides", "step"), [(["--config.eval.every=0"], 8), ([], 3)])
def test_an_evaluation_that_fails_costs_no_training(overrides, step, tiny, tmp_path, capsys):
    own, workdir = type(tiny)(tmp_path), tmp_path / "run"
    assert own.run(tmp_path / "whole", *overrides) == 0
    capsys.readouterr()
    (split,) = (tmp_path / "cache").glob("*/validation*")
    whole = split.read_bytes()
    split.write_bytes(bytes(len(whole)))
    for _ in range(2):  # however often it is started
        assert own.run(workdir, *overrides, "--config.checkpoint.every=0") == 1
        assert "is damaged, delete it and start again" in output(capsys)[1]
        assert own.checkpoints(workdir) == {str(step)}
        assert [line["step"] for line in own.steps(workdir)] == list(range(1, step + 1))
    split.write_bytes(whole)
    assert own.run(workdir, *overrides, "--config.checkpoint.every=0") == 0
    own.assert_same_end(workdir, tmp_path / "whole")


def test_a_sample_that_fails_is_a_notice(tiny, unbroken, tmp_path, monkeypatch, capsys):
    def generate(*_, **options):
        raise IndexError("piece id is out of range.")

    monkeypatch.setattr(evaluation, "generate", generate)
    assert tiny.run(tmp_path / "run", "--config.eval.sample_length=4") == 0
    out, _ = output(capsys)
    for step in (3, 6, 8):
        assert f"step {step}: there is no sample (IndexError: piece id is out of range.)" in out
    tiny.assert_same_end(tmp_path / "run", unbroken)


def test_a_run_is_complete_once_its_last_checkpoint_is_on_the_disk(tiny, tmp_path, monkeypatch, capsys):
    def rename(source, target, real=os.rename, **options):
        if str(target).endswith("/checkpoints/8"):
            raise OSError(28, "No space left on device")
        real(source, target, **options)

    monkeypatch.setattr(os, "rename", rename)
    assert tiny.run(tmp_path / "run") == 1
    out, line = output(capsys)
    assert "Complete" not in out and "checkpoint 8 could not be written" in line
    assert line.endswith("No space left on device")


def test_the_speed_of_a_step_beside_an_evaluation_is_its_own(tiny, tmp_path, monkeypatch):
    def build(*arguments, real=loop.build):
        program = real(*arguments)

        def step(*arguments):
            time.sleep(0.1)  # and, as on a CPU that is busy, nothing of the step is left to do when the call returns
            return jax.block_until_ready(program.step(*arguments))

        return dataclasses.replace(program, step=step)

    monkeypatch.setattr(loop, "build", build)
    assert tiny.run(tmp_path / "run") == 0
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    speeds = [line["train/tokens_per_second"] for line in lines if line["step"] > 1 and "train/loss" in line]
    assert len(speeds) == 7 and max(speeds) <= 4 * 16 / 0.1


def test_a_second_ctrl_c_leaves_at_once(tiny, unbroken, tmp_path, monkeypatch, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner's workers ignore it
    with monkeypatch.context() as patched:
        send(patched, signal.SIGINT, signal.SIGINT, step=5)
        assert tiny.run(tmp_path / "run") == 130
    signal.signal(signal.SIGINT, before)
    assert output(capsys)[1] == "interrupted"
    assert tiny.checkpoints(tmp_path / "run") == {"2", "4"}
    assert tiny.run(tmp_path / "run") == 0
    tiny.assert_same_end(tmp_path / "run", unbroken)


def test_ctrl_c_from_the_shell(tiny, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        *tiny.command(tmp_path / "run", "--config.train.extend=9999999")[1:],
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any(line.startswith("step 3 ") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    stopped = re.search(r"stopped by SIGINT after step (\d+), which is saved; the same command continues\n$", errors)
    assert stopped and "Traceback" not in errors
    assert stopped[1] in tiny.checkpoints(tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == int(stopped[1])


def test_a_complete_run_says_so_and_how_to_go_on(tiny, unbroken, copied, capsys):
    assert tiny.run(copied) == 0
    out, line = output(capsys)
    assert f"The run in {copied} is complete: 8 steps." in out and not line
    for hint in (f"tensorboard --logdir {copied}", "--config.train.extend=4", "another --workdir"):
        assert hint in out
    assert (copied / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()


def test_sets_that_a_complete_run_was_not_judged_by_are_made_up_for(tiny, unbroken, copied, capsys):
    more = f"--config.eval.texts=a={tiny.corpus}/a.jsonl,b={tiny.corpus}/b.jsonl"
    assert tiny.run(copied, more) == 0
    assert tiny.lines(copied)[: len(tiny.lines(unbroken))] == tiny.lines(unbroken)
    first, second = tiny.lines(copied)[len(tiny.lines(unbroken)) :]
    assert (first["step"], second["step"]) == (8, 8) and first["eval/a/loss"] > 0 and second["eval/b/loss"] > 0
    capsys.readouterr()
    assert tiny.run(copied, more) == 0
    assert "is complete: 8 steps." in output(capsys)[0]


@pytest.mark.parametrize(("schedule", "goes_on"), [("linear", False), ("cosine", True)])
def test_training_on_at_a_rate_of_zero_is_not_suggested(schedule, goes_on, tmp_path):
    config = default_config()
    config.model.vocabulary, config.optimizer.schedule.method = 257, schedule
    hint = messages.how_to_go_on(build(resolve(config)), tmp_path, config.train.steps)
    assert ("--config.train.extend=500" in hint) == goes_on and "Start anew:" in hint


def test_an_extended_run_goes_on_as_if_it_had_been_longer_from_the_start(tiny, copied, tmp_path, capsys):
    before = (copied / "metrics.jsonl").read_bytes()
    assert tiny.run(copied, "--config.train.extend=4") == 0
    assert "steps 8 to 12" in output(capsys)[0]
    assert (copied / "metrics.jsonl").read_bytes().startswith(before)
    assert tiny.run(tmp_path / "whole", "--config.train.extend=4") == 0
    assert tiny.steps(copied) == tiny.steps(tmp_path / "whole")
    assert [line["step"] for line in tiny.steps(copied)] == list(range(1, 13))
    tiny.assert_same_arrays(copied, tmp_path / "whole", 12)
    last_rate = pytest.approx(0.1 * json.loads((copied / CONFIG).read_text())["config"]["optimizer.learning_rate"])
    assert [line["train/learning_rate"] for line in tiny.steps(copied)[8:]] == [last_rate] * 4


def test_a_damaged_newest_checkpoint_is_named_and_the_run_ends_alike(tiny, unbroken, copied, capsys):
    files = [path for path in (copied / "checkpoints" / "8" / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    assert tiny.run(copied) == 0
    out, _ = output(capsys)
    assert "checkpoint 8 is damaged (" in out and "moved to 8.damaged, going on from step 6" in out
    assert tiny.checkpoints(copied) == {"6", "8", "8.damaged"}
    tiny.assert_same_end(copied, unbroken)


def test_another_config_is_refused_and_the_differing_keys_are_named(tiny, unbroken, copied, capsys):
    changed = "--config.optimizer.learning_rate=0.002", "--config.train.seed=3", "--config.eval.every=1"
    assert tiny.run(copied, *changed) == 1
    _, line = output(capsys)
    assert f"{copied} holds a run with another config; take another workdir, or mend: " in line
    assert line.endswith("optimizer.learning_rate (there 0.001, here 0.002); train.seed (there 0, here 3)")
    assert (copied / "config.json").read_bytes() == (unbroken / "config.json").read_bytes()
    assert tiny.checkpoints(copied) == tiny.checkpoints(unbroken)


CHANGES = (
    "model.width=32 init.method=small reparam.wesar.sigma=0.01 optimizer.rule.adamw.b2=0.99 train.batch_size=8 "
    "train.steps=9 train.z_loss=0.0 data.seed=1 data.length=8"
)


@pytest.mark.parametrize("change", CHANGES.split())
def test_what_changes_the_training_is_refused(change, tiny, copied, capsys):
    assert tiny.run(copied, f"--config.{change}") == 1
    assert f"{change.split('=')[0]} (there " in output(capsys)[1]


def test_what_does_not_change_the_training_is_accepted(tiny, copied, capsys):
    free = ["eval.every=1", "eval.sample_length=5", "checkpoint.every=5", "checkpoint.keep_last=3", "model.remat=full"]
    free += ["log.tensorboard_every=0", "mesh.fsdp=2", "data.workers=2"]
    assert tiny.run(copied, *(f"--config.{key}" for key in free)) == 0
    assert "is complete: 8 steps" in output(capsys)[0]


def test_another_text_under_the_same_name_is_refused(tiny, copied, tmp_path, capsys):
    own = type(tiny)(tmp_path)  # the same text in another place
    config = (copied / "config.json").read_text()
    (copied / "config.json").write_text(config.replace(str(tiny.corpus), str(own.corpus)))
    assert own.run(copied) == 0
    capsys.readouterr()
    with (own.corpus / "c.jsonl").open("a") as file:
        file.write('{"text": "one more document"}\n')
    assert own.run(copied) == 1
    assert "; take another workdir, or mend: data_digest (there '" in output(capsys)[1]


def test_another_tokenizer_is_refused(tmp_path):
    claim(tmp_path, Config(), {"tokenizer_digest": "ab", "data_digest": "01"})
    claim(tmp_path, Config(), {"tokenizer_digest": "ab", "data_digest": "01"})
    with pytest.raises(ConfigError, match=r"tokenizer_digest \(there 'ab', here 'cd'\)$"):
        claim(tmp_path, Config(), {"tokenizer_digest": "cd", "data_digest": "01"})


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"config": 1, "identity": {}}'])
def test_a_torn_config_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json can't be used .*; take another workdir"):
        claim(tmp_path, Config(), {})


def test_metrics_that_cannot_be_written_stop_no_run(tiny, unbroken, tmp_path, monkeypatch, capsys):
    def evaluate(*arguments, real=evaluation.evaluate):
        path = tmp_path / "run" / "metrics.jsonl"
        if path.is_file():
            path.unlink()
            path.mkdir()
        return real(*arguments)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    assert tiny.run(tmp_path / "run") == 0
    out, line = output(capsys)
    assert out.count("metrics.jsonl could not be written (") == 1 and "training goes on" in out
    assert "lines of metrics.jsonl could not be written and are lost" in out and not line
    tiny.assert_same_arrays(tmp_path / "run", unbroken)


def test_a_loss_that_is_not_finite_ends_the_run_before_it(tiny, tmp_path, capsys):
    diverging = "--config.optimizer.learning_rate=1e17", "--config.optimizer.clip.method=none"
    for _ in range(2):
        assert tiny.run(tmp_path / "run", *diverging) == 1
        _, line = output(capsys)
        assert line.startswith(
            "error: the loss, a gradient or the update was not finite at step 2; the state before it is checkpoint 1"
        )
        assert tiny.checkpoints(tmp_path / "run") == {"1"}
    saved = tiny.arrays(tmp_path / "run", 1)
    assert saved["step"] == 1 and not saved["guard/halted"]
    assert all(np.isfinite(array).all() for array in saved.values())
    first, second = tiny.steps(tmp_path / "run")
    assert np.isfinite([value for name, value in first.items() if name.startswith("train/")]).all()
    assert second["train/finite"] == 0
    assert not np.isfinite([second["train/loss"], second["train/grad_norm"]]).all()


def test_an_update_that_is_not_finite_ends_the_run_and_is_never_saved(tiny, tmp_path, capsys):
    for _ in range(2):
        assert tiny.run(tmp_path / "run", "--config.optimizer.rule.adamw.eps=0.0") == 1  # 0/0 at a token not yet seen
        assert "not finite at step 1; the run goes on from its beginning" in output(capsys)[1]
        assert not tiny.checkpoints(tmp_path / "run")


def test_a_second_run_in_the_same_workdir_is_refused_while_the_first_is_at_work(tiny, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with workdir.alone(tmp_path / "run"):
        assert tiny.run(tmp_path / "run") == 1
    first = f"process {os.getpid()} on {socket.gethostname()}"
    assert (
        output(capsys)[1]
        == f"error: another run is at work in {tmp_path / 'run'} ({first}); wait for it, or take another workdir"
    )
    assert (tmp_path / "run" / ".lock").read_text() == first, "which nobody holds any more"
    assert tiny.run(tmp_path / "run") == 0
