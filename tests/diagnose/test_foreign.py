"""Logs of other trainers: what their own writers leave is read, and a planted fault in it is named."""

import json

import numpy as np
import pytest

import main
from jaxstab.config import UserError
from jaxstab.diagnose import diagnose_log, find_causes
from jaxstab.diagnose.foreign import read_log
from jaxstab.logging.tensorboard import TensorBoard

STEPS = np.arange(10, 2001, 10)  # as most trainers log
DICE = np.random.default_rng(0)
LOSS = 2.3 + 3 * np.exp(-STEPS / 200) + 0.03 * DICE.standard_normal(len(STEPS))
RATE = 1e-3 * np.minimum(STEPS / 200, 1) * (1 + np.cos(np.pi * STEPS / 2000)) / 2
NORM = np.exp(0.1 * DICE.standard_normal(len(STEPS)))


def lines(loss, norm="grad_norm", of_loss="loss", rate="lr", rates=RATE):
    columns = zip(STEPS.tolist(), loss.tolist(), NORM.tolist(), rates.tolist(), strict=True)
    return [{"step": step, of_loss: value, norm: size, rate: at} for step, value, size, at in columns]


def written(path, text):
    path.write_text(text)
    return path


def maxtext(path, loss):
    named = lines(loss, "learning/grad_norm", "learning/loss", "learning/current_learning_rate")
    return written(path / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in named))


def trainer(path, loss):
    """As `transformers.Trainer` saves it, with evaluations between the steps, and a summary of the run at its end."""
    log = [{"epoch": each["step"] / 100, **each} for each in lines(loss, rate="learning_rate")]
    log += [{"step": 500, "eval_loss": 2.5}, {"step": 2000, "train_loss": 2.4, "train_runtime": 10.0}]
    written(path / "trainer_state.json", json.dumps({"best_metric": None, "log_history": log, "global_step": 2000}))
    return path


def torchtitan(path, loss):
    board = TensorBoard(path, -1)
    names = {"loss": "loss_metrics/global_avg_loss", "grad_norm": "grad_norm", "lr": "lr"}
    for each in lines(loss):
        board.scalars(each["step"], {names[name]: value for name, value in each.items() if name != "step"})
    board.close()
    return path


WRITERS = pytest.mark.parametrize("write", [maxtext, trainer, torchtitan])


@WRITERS
def test_a_healthy_log_is_read_and_raises_no_alarm(tmp_path, write):
    history = read_log(write(tmp_path, LOSS))
    for name, values in (("loss", LOSS), ("grad_norm", NORM), ("learning_rate", RATE)):
        steps, read = history.scalar(f"train/{name}")
        np.testing.assert_array_equal(steps, STEPS)
        np.testing.assert_allclose(read, values, rtol=1e-6)
    assert [each.cause for each in find_causes(history)] == ["none"]


@WRITERS
def test_odd_batches_and_a_loss_that_is_not_finite(tmp_path, write):
    odd, broken = LOSS.copy(), LOSS.copy()
    odd[100:110] += 2
    broken[150:] = np.nan
    cause = find_causes(read_log(write(tmp_path, odd)))[0]
    assert (cause.cause, cause.step, cause.last) == ("data", 1010, 1100)
    (tmp_path / "other").mkdir()
    cause = find_causes(read_log(write(tmp_path / "other", broken)))[0]
    assert (cause.cause, cause.step) == ("nonfinite", 1510)


def test_a_rate_that_departs_and_comes_back(tmp_path):
    rates = RATE.copy()
    rates[120:123] *= 20
    log = written(tmp_path / "log.jsonl", "\n".join(map(json.dumps, lines(LOSS, rates=rates))))
    cause = find_causes(read_log(log))[0]
    assert (cause.cause, cause.step, cause.last) == ("rate_off_schedule", 1210, 1230)


def test_a_torn_line_and_numbers_as_text_are_read(tmp_path):
    log = written(
        tmp_path / "log.jsonl", '{"step": 1, "loss": "nan"}\nstarting\n{"step": 2, "loss": 3.5}\n{"step": 3, "lo'
    )
    steps, loss = read_log(log).scalar("train/loss")
    assert steps.tolist() == [1, 2] and np.isnan(loss[0]) and loss[1] == 3.5


def test_the_command_reads_a_log_and_writes_where_it_is_told(tmp_path, capsys):
    log, out = maxtext(tmp_path, LOSS), tmp_path / "out"
    assert main.main(["main.py", "diagnose", f"--log={log}", f"--workdir={out}"]) == 0
    assert "Cause: none" in capsys.readouterr().out
    assert json.loads((out / "report" / "diagnose.json").read_text())["cause"] == "none"


@pytest.mark.parametrize("content", [None, "{}", "[1, 2]", '{"step": 1, "accuracy": 2}'])
def test_what_is_no_log_is_one_line(tmp_path, content):
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as raised:
        read_log(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_a_page_escapes_what_comes_from_a_log(tmp_path, capsys):
    directory = tmp_path / "<img src=x onerror=alert(1)>"
    directory.mkdir()
    log = lines(LOSS, rate="learning_rate")
    (directory / "log.jsonl").write_text("".join(json.dumps(each | {"<script>": 1.0}) + "\n" for each in log))
    diagnose_log(directory / "log.jsonl")
    page = (directory / "report" / "diagnose.html").read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img" not in page and "<script" not in page


@pytest.mark.parametrize("step", ["Infinity", "1e999", "-3", "9" * 400, "NaN", '"x"', "[1]", '{"a":' * 50_000])
def test_a_step_that_is_none_is_left_out(tmp_path, step):
    sound = "".join(json.dumps(each) + "\n" for each in lines(LOSS, rate="learning_rate"))
    (tmp_path / "log.jsonl").write_text(f'{{"step": {step}, "loss": 9.0}}\n{sound}')
    assert read_log(tmp_path / "log.jsonl").series["train/loss"].steps.tolist() == STEPS.tolist()
