"""metrics.jsonl: valid JSON, each step once, whole lines, whatever happens to the run or the disk."""

import json
import math
import os
import tracemalloc

import pytest

from jaxstab.config import UserError
from jaxstab.logging import each_line, in_force, read_metrics
from jaxstab.logging.jsonl import MetricsFile, count_spikes, purge


def write(path, steps, last_step=-1, attempt=0, warn=pytest.fail):
    file = MetricsFile(path, last_step, attempt, warn)
    for step in steps:
        file.write(step, {"train/loss": 10.0 - step})
    return file


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_lines_are_json_and_come_back_exactly(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {"train/loss": 0.1 + 0.2, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e-300}
    MetricsFile(path, -1, 2).write(7, values)
    raw = json.loads(path.read_text(), parse_constant=refuse)
    assert raw["a"] == "nan" and raw["b"] == "inf" and raw["c"] == "-inf"
    (line,) = read_metrics(path)
    assert line.pop("step") == 7 and line.pop("attempt") == 2
    assert math.isnan(line.pop("a")) and math.isnan(values.pop("a"))
    assert line == values


@pytest.mark.parametrize("torn", [b"", b'{"step": 6, "atte', b'{"step": 4, "attempt": 0}'])
def test_resuming_leaves_each_step_once(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 6))
    path.open("ab").write(torn)
    write(path, range(4, 9), last_step=3)
    assert [line["step"] for line in read_metrics(path)] == list(range(1, 9))
    assert os.listdir(tmp_path) == ["metrics.jsonl"], "a torn line of a step that comes again is no loss"


DAMAGE = {
    "NULs": bytes(4096) + b"\n",
    "no line": b"\xff\x00\n",
    "a list": b"[1]\n",
    "places of another type": b'{"step": "3", "attempt": 0}\n',
    "fractions": b'{"step": 3.5, "attempt": 0}\n',
    "UTF-16": '{"step": 3, "attempt": 0}\n'.encode("utf-16"),
    "deep": b'{"step": ' + b"[" * 99_999 + b"\n",
    "torn": b'{"step": 3, "attempt": 0}',
    "of another trainer": b'{"iter": 3, "loss": 2.5}\n',
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_lines_are_set_aside_and_named_and_the_run_goes_on(tmp_path, kind):
    path, told = tmp_path / "metrics.jsonl", []
    write(path, range(1, 6))
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(2 if DAMAGE[kind].endswith(b"\n") else 5, DAMAGE[kind])
    path.write_bytes(b"".join(lines))
    write(path, range(4, 9), last_step=3, warn=told.append)
    assert [line["step"] for line in read_metrics(path)] == list(range(1, 9))
    assert path.with_name("metrics.jsonl.damaged").read_bytes() == DAMAGE[kind]
    (line,) = told
    assert line.startswith(f"{path} had ") and line.endswith("are set aside in metrics.jsonl.damaged")


def test_a_long_file_is_read_in_bounded_memory(tmp_path):
    """As a run reads it that goes on: what it leaves out, what is a spike, and its last steps."""
    path, count = tmp_path / "metrics.jsonl", 100_000
    with path.open("w") as file:
        file.writelines(f'{{"step": {step}, "attempt": 0, "train/loss": 2.5}}\n' for step in range(count))
    tracemalloc.start()
    try:
        purge(path, count - 2, 0)
        assert count_spikes(path, count, 0) == 0
        assert [line["step"] for line in each_line(path, count - 4)] == [count - 3, count - 2]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_another_attempt_leaves_what_the_one_before_came_to(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 6))
    write(path, range(3, 8), last_step=2, attempt=1)
    write(path, range(5, 7), last_step=4, attempt=1)  # the second attempt, killed and resumed
    places = [(line["attempt"], line["step"]) for line in read_metrics(path)]
    assert places == [(0, step) for step in range(1, 6)] + [(1, step) for step in range(3, 7)]
    assert [(line["attempt"], line["step"]) for line in in_force(read_metrics(path))] == [
        (0, 1),
        (0, 2),
        *((1, step) for step in range(3, 7)),
    ]


def test_an_evaluation_shares_its_step(tmp_path):
    file = write(tmp_path / "metrics.jsonl", [1, 2])
    file.write(2, {"eval/valid/loss": 3.0})
    write(tmp_path / "metrics.jsonl", [3], last_step=2)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 2, 3]


def test_starting_from_scratch_removes_what_a_killed_start_left(tmp_path):
    write(tmp_path / "metrics.jsonl", [0, 1, 2])
    write(tmp_path / "metrics.jsonl", [0, 1])
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]


def test_lines_wait_while_the_directory_is_gone(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    file = MetricsFile(path, -1)
    for step in (1, 2):
        with pytest.raises(FileNotFoundError):
            file.write(step, {"train/loss": 1.0})
    path.parent.mkdir()
    file.write(3, {"train/loss": 1.0})
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]


def test_a_disk_that_fills_up_tears_no_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    file = write(path, [1])
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:5]))
    with pytest.raises(OSError, match="No space left"):
        file.write(2, {"train/loss": 1.0})
    assert [line["step"] for line in read_metrics(path)] == [1]
    monkeypatch.undo()
    file.write(3, {"train/loss": 1.0})
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]


def test_reading_leaves_out_the_line_being_written_and_names_a_bad_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    path.open("ab").write(b'{"step": 3')
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    path.write_bytes(b'{"step": 1, "attempt": 0}\nnonsense\n')
    with pytest.raises(UserError, match="line 2 is not a line of metrics"):
        read_metrics(path)
    for line in (
        '{"step": 1, "attempt": 0, "train/loss": ' + "9" * 400 + "}",
        '{"step": "1", "attempt": 0}',
        "[" * 99_999,
    ):
        path.write_text(line + "\n")
        with pytest.raises(UserError, match="line 1 is not a line of metrics"):
            read_metrics(path)
    with pytest.raises(UserError, match="no metrics file"):
        read_metrics(tmp_path / "absent.jsonl")


def test_spikes_are_counted_up_to_a_step_and_over_attempts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert count_spikes(path, 10, 0) == 0
    for attempt, first in ((0, 1), (1, 4)):
        file = MetricsFile(path, first - 1, attempt)
        for step in range(first, 8):
            file.write(step, {"train/spike": float(step in (3, 5, 6)), "train/spike_free": 1.0})
    path.open("ab").write(b'{"step": 8, "attempt": 1, "train/spike": 1.0')
    counts = [count_spikes(path, step, attempt) for step, attempt in ((7, 1), (5, 1), (4, 1), (7, 0), (4, 0), (-1, 0))]
    assert counts == [5, 4, 3, 3, 1, 0]
