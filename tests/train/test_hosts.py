"""Several processes train as one does, bit for bit; when one of them is stopped, lost or other, none hangs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxstab.diagnose import find_causes, read_history
from jaxstab.logging import read_measurements
from jaxstab.train.trained import read_record

ROOT = Path(__file__).parents[2]
DEVICES, SILENCE = 4, 5
OPTIONS = [
    "--config.model.vocabulary=304",
    "--config.reparam.method=sigma_reparam",
    "--config.mesh.replica=2",
    "--config.mesh.fsdp=2",
    "--config.train.accumulation=1",
    "--config.stability.measure=full",
    "--config.stability.measure_every=4",
    "--config.stability.on_nonfinite=rollback",
    "--config.stability.rollback_steps=2",
    "--config.stability.skip_batches=2",
    "--config.checkpoint.keep_last=3",
    "--config.eval.sample_length=4",
]
pytestmark = pytest.mark.slow


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def by_config(port, number, count):
    """How a process is told its place by the config."""
    where = [f"--config.hosts.coordinator=localhost:{port}", f"--config.hosts.processes={count}"]
    return {}, [*where, f"--config.hosts.process={number}"]


def by_slurm(port, number, count):
    """How srun tells it, one process on each of several nodes."""
    variables = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": "0",
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{count})",
        "JAX_COORDINATOR_PORT": str(port),
    }
    return variables, []


class Launch:
    """Processes of a run, and how they end."""

    def __init__(self, tiny, workdir, count, told=by_config, faults=(), own=()):
        """Starts them: `faults` and `own`, options of the command line, are by number."""
        port, flags = free_port(), f"--xla_force_host_platform_device_count={DEVICES // count}"
        others = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
        self.processes = []
        for number in range(count):
            variables, options = told(port, number, count) if count > 1 else ({}, [])
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": " ".join([flags, *others]), **variables}
            environment["FAULT"] = dict(faults).get(number, "")
            silence = f"--config.hosts.silence_seconds={SILENCE}"
            command = tiny.command(workdir, *OPTIONS, silence, *options, *dict(own).get(number, ()))[1:]
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("process.py")), *command],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def ends(self, seconds=240):
        """(exit code, what was said, errors) of each process."""
        try:
            outputs = [process.communicate(timeout=seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(each.returncode, *output) for each, output in zip(self.processes, outputs, strict=True)]


def completed(*arguments, **options):
    ends = Launch(*arguments, **options).ends()
    assert [code for code, *_ in ends] == [0] * len(ends), ends
    return ends


def own_lines(text):
    """Lines that aren't those of Gloo and XLA, which log what they do."""
    return [line for line in text.splitlines() if not re.match(r"\[Gloo\]|[WE]\d{4} ", line)]


def digests(workdir, step):
    """A digest of 64 bits of every array of a checkpoint, which is the same on any mesh."""
    return read_record((workdir / "checkpoints" / str(step)).absolute())["arrays"]


def assert_same(tiny, workdir, reference):
    """Asserts that two runs are the same, bit for bit, in all that their steps leave.

    Full measurements, of a program of its own at some steps, are to rounding: their means over devices are summed in
    another order.
    """
    assert str(tiny.lines(workdir)) == str(tiny.lines(reference))  # nan is nan
    assert tiny.checkpoints(workdir) == tiny.checkpoints(reference)
    assert digests(workdir, 8) == digests(reference, 8)
    assert (workdir / "interventions.jsonl").read_text() == (reference / "interventions.jsonl").read_text()
    measured, expected = read_measurements(workdir), read_measurements(reference)
    assert measured.keys() == expected.keys()
    for name, (steps, values) in expected.items():
        assert steps.tolist() == measured[name][0].tolist(), name
        if len(steps) < len(tiny.steps(reference)):
            np.testing.assert_allclose(values, measured[name][1], rtol=1e-5, atol=1e-7, err_msg=name)
        else:
            assert values.tobytes() == measured[name][1].tobytes(), name
    incidents, wanted = (path / "incidents" / "6" for path in (workdir, reference))
    assert np.array_equal(np.load(incidents / "batch.npy"), np.load(wanted / "batch.npy"))
    record, other = (json.loads((path / "incident.json").read_text()) for path in (incidents, wanted))
    for each in (record, other):
        each["metrics"].pop("train/tokens_per_second")
    assert str(record) == str(other)


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """A run of one process on four devices, with a roll-back in it."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    completed(tiny, workdir, 1)
    assert [line["attempt"] for line in tiny.steps(workdir)] == [0] * 6 + [1] * 4
    return workdir


@pytest.fixture(scope="module")
def together(tiny, tmp_path_factory, alone):
    """The same run of two processes, each of which has two of the devices."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    return workdir, completed(tiny, workdir, 2)


def test_two_processes_train_as_one_bit_for_bit(tiny, alone, together):
    assert_same(tiny, together[0], alone)
    assert [str(each) for each in find_causes(read_history(together[0]))] == [
        str(each) for each in find_causes(read_history(alone))
    ]


def test_one_process_talks(together):
    (_, said, _), (_, other, errors) = together[1]
    assert "Complete: 8 steps." in said and "back to step 4" in said
    assert not own_lines(other + errors)


def test_a_run_that_is_stopped_and_killed_goes_on_with_other_numbers_of_processes(tiny, alone, tmp_path):
    workdir = tmp_path / "run"
    ends = Launch(tiny, workdir, 2, faults={1: "SIGTERM:2"}).ends()
    assert [code for code, *_ in ends] == [128 + signal.SIGTERM] * 2, ends
    assert "which is saved; the same command continues" in ends[0][2]
    assert not own_lines(ends[1][1] + ends[1][2])

    began = time.monotonic()
    launch = Launch(tiny, workdir, 2, faults={0: "SIGKILL:5"})
    killed, other = launch.ends()
    assert killed[0] == -signal.SIGKILL and other[0] not in (0, -signal.SIGKILL), other
    assert "process 0 of 2" in other[2] and "has ended; the same command goes on from the last checkpoint" in other[2]
    assert time.monotonic() - began < 120

    completed(tiny, workdir, 4, told=by_slurm)
    assert_same(tiny, workdir, alone)


def test_a_process_that_hangs_is_named_and_ends_the_others(tiny, tmp_path):
    launch = Launch(tiny, tmp_path / "run", 2, faults={1: "SIGSTOP:3"})
    out, errors = launch.processes[0].communicate(timeout=240)
    launch.processes[1].kill()
    assert launch.processes[0].returncode == 1, out + errors
    assert "process 1 of 2" in errors and f"has not been heard of for {SILENCE} s" in errors
    launch.ends()


def test_a_process_with_another_config_is_named_before_anything_runs(tiny, tmp_path):
    ends = Launch(tiny, tmp_path / "run", 2, own={1: ["--config.train.steps=9"]}).ends()
    assert [code for code, *_ in ends] == [1, 1]
    line = "has another config than process 0"
    assert line in ends[0][2] and "train.steps (there 9, here 8)" in ends[0][2]
    assert not (tmp_path / "run").exists()
