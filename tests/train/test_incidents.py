"""What an incident keeps, and for how many."""

import json

import numpy as np
import pytest

from jaxstab.config import UserError
from jaxstab.data import load_tokenizer
from jaxstab.logging import LogConfig, RunLogger, read_measurements, read_metrics
from jaxstab.train import incidents

BYTES = load_tokenizer("bytes", "")
TOKENS = np.frombuffer(b"one two!", np.uint8).reshape(1, 8).astype(np.int32)


def scalars_of(step, spike=0.0):
    return {
        "train/loss": 3.0,
        "train/finite": 1.0,
        "train/spike": spike,
        "stability/tev_mean/lm_head": 1 + step % 7 / 100,
    }


def record(checkpoint=0):
    journal = {"skipped": (), "rollbacks": ()}
    known = {"reason": "why", "response": "log", "batch": 3, "records": [17], "journal": journal}
    return known | {"checkpoint": checkpoint, "config": {"model.width": 8}, "identity": {"data_digest": "d"}}


def watch(workdir, steps, limit=5, attempt=0, last_step=0, jump=None):
    history = incidents.Incidents(workdir, limit, attempt, last_step)
    for step in steps:
        gate = 5.0 if step == jump else 1.0
        history.remember(step, scalars_of(step), {"stability/gate/q_proj": np.float32([1 + step % 5 / 50, gate])})
    return history


def test_an_incident_tells_what_it_was(tmp_path):
    path = watch(tmp_path, range(1, 301), jump=300).write(record(checkpoint=250), TOKENS, BYTES)
    assert path == tmp_path / "incidents" / "300"
    assert [line["step"] for line in read_metrics(path / "metrics.jsonl")] == list(range(101, 301))
    steps, values = read_measurements(path)["stability/gate/q_proj"]
    assert len(steps) == 200 and values[-1].tolist() == [1.0, 5.0]
    assert "one two!" in (path / "batch.txt").read_text() and "record 17" in (path / "batch.txt").read_text()
    summary = (path / "summary.md").read_text()
    first = next(line for line in summary.splitlines() if line.startswith("| stability"))
    assert first.startswith("| stability/gate/q_proj/1 | 1 | 5 |"), "what moved farthest comes first"
    assert f"--workdir={tmp_path} --replay=300" in summary
    directory, known = incidents.read(tmp_path, "300")
    assert directory == path and known["checkpoint"] == 250 and known["config"] == {"model.width": 8}
    assert incidents.pinned(tmp_path) == {250}


def test_only_so_many_are_kept_and_one_may_be_written_again(tmp_path):
    for step in (10, 20, 30):
        watch(tmp_path, range(step, step + 1), limit=2).write(record(step - 1), TOKENS, BYTES)
    assert incidents.pinned(tmp_path) == {9, 19}
    again = watch(tmp_path, [20], limit=2).write(record(15), TOKENS, BYTES)
    assert again and incidents.pinned(tmp_path) == {9, 15}
    assert watch(tmp_path, [40], limit=0).write(record(), TOKENS, BYTES) is None


def test_an_attempt_has_incidents_of_its_own(tmp_path):
    for attempt in (0, 1):
        watch(tmp_path, [10], attempt=attempt).write(record(), TOKENS, BYTES)
    assert {path.name for path in (tmp_path / "incidents").iterdir()} == {"10", "10-1"}
    assert incidents.read(tmp_path, "10-1")[1]["attempt"] == 1


def test_a_spike_that_goes_on_is_one(tmp_path):
    history = watch(tmp_path, range(1, 5))
    history.remember(5, scalars_of(5, spike=1.0), {})
    assert not history.goes_on
    history.remember(6, scalars_of(6, spike=1.0), {})
    assert history.goes_on


def test_a_resumed_run_knows_the_steps_before(tmp_path):
    with RunLogger(tmp_path, LogConfig(tensorboard_every=0), None, 0, 400) as logger:
        for step in range(1, 321):
            logger.train(step, scalars_of(step), {"stability/gate/q_proj": np.float32([step, 1])})
    history = watch(tmp_path, range(301, 311), last_step=300)
    path = history.write(record(), TOKENS, BYTES)
    assert [line["step"] for line in read_metrics(path / "metrics.jsonl")] == list(range(111, 311))
    steps, values = read_measurements(path)["stability/gate/q_proj"]
    assert steps.tolist() == list(range(111, 311)) and values[0, 0] == 111


def test_what_is_not_there_is_named(tmp_path):
    watch(tmp_path, [10]).write(record(), TOKENS, BYTES)
    with pytest.raises(UserError, match=r"no incident 11 in .*; there is: 10$"):
        incidents.read(tmp_path, "11")
    assert json.loads((tmp_path / "incidents" / "10" / "incident.json").read_text())["reason"] == "why"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"checkpoint": "x"}', b"\xff\xfe{\0", b'{"checkpoint": ' * 50_000])
def test_a_damaged_incident_is_set_aside_and_named(tmp_path, content):
    path = watch(tmp_path, [10]).write(record(9), TOKENS, BYTES)
    watch(tmp_path, [20]).write(record(19), TOKENS, BYTES)
    (path / "incident.json").write_bytes(content)
    assert incidents.pinned(tmp_path) == {19}
    with pytest.raises(UserError, match=r"the incident .*10 is damaged") as error:
        incidents.read(tmp_path, "10")
    assert "\n" not in str(error.value)
    told = []
    incidents.Incidents(tmp_path, 5, 0, 0, told.append)
    (line,) = told
    assert line.endswith("it is set aside as 10.damaged")
    with pytest.raises(UserError, match=r"there is: 20$"):
        incidents.read(tmp_path, "10")
    assert incidents.pinned(tmp_path) == {19}


def test_an_incident_is_written_down_whatever_is_in_its_batch(tmp_path):
    class Strict:
        """As SentencePiece: an id beyond the vocabulary is an IndexError."""

        end = 256

        def decode(self, ids):
            if max(ids) > 256:
                raise IndexError("piece id is out of range.")
            return BYTES.decode(ids)

    tokens = np.array([[*b"good", 256, 300, 301]], np.int32)
    path = watch(tmp_path, [10]).write(record(), tokens, Strict())
    text = (path / "batch.txt").read_text()
    assert (
        "good" in text and "(2 tokens that the tokenizer can't decode: IndexError: piece id is out of range.)" in text
    )


def test_damaged_logs_keep_no_run_from_going_on(tmp_path):
    warnings = []
    (tmp_path / "metrics.jsonl").write_text("what?\n")
    history = incidents.Incidents(tmp_path, 5, 0, 300, warnings.append)
    (warning,) = warnings
    assert "the logs up to step 300 can't be read" in warning and "metrics.jsonl, line 1" in warning
    history.remember(301, scalars_of(301), {})
    path = history.write(record(), TOKENS, BYTES)
    assert [line["step"] for line in read_metrics(path / "metrics.jsonl")] == [301]
