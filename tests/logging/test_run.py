"""The logger of a run: all sinks agree, resuming joins the parts, and no failure to write reaches the training."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from jaxstab.config import ConfigError, UserError
from jaxstab.logging import LogConfig, RunLogger, read_measurements, read_metrics
from jaxstab.logging.tensorboard import TensorBoard, crc32c

RATIO = "stability/update_ratio/down_proj"


def logger(workdir, resume=None, attempt=0, every=1, seconds=0.0, total=20, terminal=False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    run = RunLogger(workdir, LogConfig(every, seconds), resume, attempt, total, console)
    return run, console.file


def train(run, steps):
    for step in steps:
        run.train(step, {"train/loss": 10.0 - step, "train/tokens_per_second": 1234.5}, {RATIO: np.full(3, step)})


def disk_full(*_):
    raise OSError("disk full")


def curves(workdir):
    events = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return events.Reload()


def points(workdir, tag):
    return [(event.step, event.value) for event in curves(workdir).Scalars(tag)]


def test_every_sink_has_everything(tmp_path):
    run, output = logger(tmp_path / "new" / "run")
    with run:
        train(run, range(1, 4))
        run.eval(3, {"eval/valid/loss": 2.5, "eval/valid/perplexity": 12.18})
        run.text(3, "sample", "def f():\n    return \x1b[31m1")
        run.notice("checkpoint 3 saved [ok]")
    workdir = tmp_path / "new" / "run"
    assert [line.get("train/loss") for line in read_metrics(workdir / "metrics.jsonl")] == [9.0, 8.0, 7.0, None]
    np.testing.assert_array_equal(read_measurements(workdir)[RATIO][1], [[1] * 3, [2] * 3, [3] * 3])
    assert points(workdir, "train/loss") == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert points(workdir, "update_ratio/down_proj/layer_2") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert points(workdir, "eval/valid/loss") == [(3, 2.5)]
    (sample,) = curves(workdir).Tensors("sample/text_summary")
    assert b"def f():" in sample.tensor_proto.string_val[0]
    shown = output.getvalue()
    assert "step 3/20  loss 7.0000  1,234 tokens/s" in shown
    assert "eval/valid/perplexity 12.18" in shown
    assert "checkpoint 3 saved [ok]\n" in shown
    assert "\x1b" not in shown


def test_resuming_joins_the_parts(tmp_path):
    run, _ = logger(tmp_path)
    train(run, range(1, 6))
    run.flush()
    train(run, range(6, 9))
    run._dashboard.flush()  # what a killed run may have brought to disk after its checkpoint
    with logger(tmp_path, resume=5)[0] as run:
        train(run, range(6, 11))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 11))
    np.testing.assert_array_equal(read_measurements(tmp_path)[RATIO][0], range(1, 11))
    assert [step for step, _ in points(tmp_path, "train/loss")] == list(range(1, 11))


ENDLESS = """
import sys
import numpy as np
from jaxstab.logging import LogConfig, RunLogger

run = RunLogger(sys.argv[1], LogConfig(1, 1000.0), None, 0, 10**6)
for step in range(1, 10**6):
    run.train(step, {"train/loss": 1.0}, {"stability/update_ratio/down_proj": np.full(3, step)})
    if step % 20 == 0:
        run.flush()
        print(f"flushed {step}", flush=True)
"""


def test_a_killed_run_goes_on_without_gap_or_repetition(tmp_path):
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    flushed = []
    while len(flushed) < 5:
        line = process.stdout.readline()
        flushed += [int(line.split()[1])] if line.startswith("flushed") else []
    process.kill()
    process.wait()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) >= flushed[-1]
    resume = flushed[-2]
    with logger(tmp_path, resume=resume)[0] as run:
        train(run, range(resume + 1, resume + 50))
    expected = list(range(1, resume + 50))
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == expected
    np.testing.assert_array_equal(read_measurements(tmp_path)[RATIO][0], expected)
    assert [step for step, _ in points(tmp_path, "train/loss")] == expected


def test_tensorboard_is_thinned_and_the_metrics_file_is_not(tmp_path):
    with logger(tmp_path, every=4)[0] as run:
        for step in range(1, 13):
            run.train(step, {"train/loss": step}, {RATIO: np.ones(2)} if step % 3 == 0 else None)
    assert [step for step, _ in points(tmp_path, "train/loss")] == [1, 5, 9]
    assert [step for step, _ in points(tmp_path, "update_ratio/down_proj/layer_0")] == [3, 9]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 12


def test_histograms_are_shown_as_histograms(tmp_path):
    counts, edges = np.array([1.0, 3.0], np.float32), np.array([0.0, 1.0, 2.0], np.float32)
    with logger(tmp_path)[0] as run:
        run.train(1, {"train/loss": 3.0}, {"s/tev_histogram/lm_head": counts, "s/tev_histogram_edges/lm_head": edges})
    (shown,) = curves(tmp_path).Histograms("s/tev_histogram/lm_head")
    assert shown.step == 1 and shown.histogram_value.bucket == [1, 3] and shown.histogram_value.bucket_limit == [1, 2]
    assert shown.histogram_value.sum == 0.5 + 3 * 1.5 and shown.histogram_value.num == 4
    assert curves(tmp_path).Tags()["scalars"] == ["train/loss", "Overview/loss"]


def test_no_tensorboard_where_none_is_asked_for(tmp_path):
    with logger(tmp_path, every=0)[0] as run:
        train(run, [1])
        run.text(1, "sample", "x")
    assert not (tmp_path / "tensorboard").exists()


def test_plain_lines_come_now_and_then_and_at_the_end(tmp_path):
    run, output = logger(tmp_path, seconds=1000.0, total=50)
    with run:
        train(run, range(1, 51))
    lines = output.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/50", "50/50"]
    assert "left" not in lines[0] + lines[1], (
        "nothing is known after the first step, and nothing is left after the last"
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_the_time_left_counts_evaluations_and_no_compiling(tmp_path, monkeypatch, terminal):
    """Five minutes of compiling, steps of a second, and an evaluation of 20 seconds after every tenth step."""
    now = 0.0
    monkeypatch.setattr("jaxstab.logging.console.time.monotonic", lambda: now)
    run, output = logger(tmp_path, total=100, every=0, terminal=terminal)
    left = {}
    with run:
        now += 300
        for step in range(1, 101):
            now += 1
            train(run, [step])
            if terminal:
                run._console._bar.refresh()
            shown = re.findall(r"(\d+):(\d\d):(\d\d) left", output.getvalue())
            if shown:
                hours, minutes, seconds = map(int, shown[-1])
                left[step] = hours * 3600 + minutes * 60 + seconds
            now += 20 * (step % 10 == 0)
    assert 1 not in left and left[2] == 98
    for step in (11, 20, 25, 50, 75, 90):
        true = 100 - step + 20 * (10 - (step - 1) // 10 - 1)
        assert left[step] == pytest.approx(true, rel=0.35), step


def test_a_terminal_gets_a_bar(tmp_path):
    run, output = logger(tmp_path, terminal=True)
    with run:
        train(run, range(1, 21))
        run.notice("between")
    shown = output.getvalue()
    assert "20/20" in shown and "loss -10.0000" in shown and "1,234 tokens/s" in shown and "between" in shown


def test_a_directory_that_disappears_is_reported_once_and_stops_nothing(tmp_path):
    workdir = tmp_path / "run"
    run, output = logger(workdir)
    train(run, range(1, 4))
    shutil.rmtree(workdir)
    train(run, range(4, 9))
    run.flush()
    run.flush()
    assert output.getvalue().count("metrics.jsonl could not be written") == 1
    assert output.getvalue().count("measurements could not be written") == 1
    workdir.mkdir()
    train(run, [9])
    run.close()
    assert [line["step"] for line in read_metrics(workdir / "metrics.jsonl")] == list(range(4, 10))
    np.testing.assert_array_equal(read_measurements(workdir)[RATIO][0], range(1, 10))


def test_paths_that_are_taken_are_reported_and_stop_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "measurements").write_text("a file")
    (tmp_path / "tensorboard").write_text("a file")
    run, output = logger(tmp_path, resume=3)
    with run:
        train(run, range(4, 9))
        run.eval(8, {"eval/valid/loss": 1.0})
        run.text(8, "sample", "x")
    shown = output.getvalue()
    for what in ("metrics.jsonl", "measurements", "TensorBoard events"):
        assert shown.count(f"{what} could not be written (") == 1
    assert "6 lines of metrics.jsonl could not be written and are lost" in shown
    assert "step 8/20" in shown


@pytest.mark.parametrize("failing", ["write", "flush"])
def test_tensorboard_goes_on_in_a_new_file_after_a_failure(tmp_path, monkeypatch, failing):
    now = 1000.0
    monkeypatch.setattr("jaxstab.logging.tensorboard.time.monotonic", lambda: now)
    board = TensorBoard(tmp_path, -1)
    board.scalars(1, {"train/loss": 1.0})
    with monkeypatch.context() as patched:
        file = SimpleNamespace(write=board._file.write, flush=board._file.flush)
        patched.setattr(file, failing, disk_full)
        patched.setattr(board, "_file", file)
        with pytest.raises(OSError, match="disk full"):
            board.text(2, "sample", "lost")
            board.flush()
    board.scalars(3, {"train/loss": 3.0})
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1, "no new file each step while the disk is full"
    now += 61
    board.scalars(4, {"train/loss": 4.0})
    board.close()
    assert points(tmp_path, "train/loss") == [(1, 1.0), (4, 4.0)]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 8, 13, 16, 1000, 25003])
def test_checksums_are_those_of_tensorboard(size):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == pywrap_tensorflow.crc32c(data)


def test_a_console_that_breaks_stops_nothing(tmp_path):
    run, output = logger(tmp_path)
    output.close()
    train(run, range(1, 4))
    run.notice("nobody hears it")
    run.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


def test_bad_configurations_and_workdirs_get_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"tensorboard_every=-1 must be at least 0"):
        LogConfig(tensorboard_every=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        logger(tmp_path / "file" / "run")
