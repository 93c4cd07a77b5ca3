"""Several processes train as one does, bit for bit; when one of them is stopped, lost or other, none hangs."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxstab.diagnose import find_causes, read_history
from jaxstab.logging import read_measurements
from jaxstab.scale import MeshConfig, make_mesh
from jaxstab.train.checkpoint import Checkpoints
from jaxstab.train.digests import leaves_by_path
from jaxstab.train.program import build
from jaxstab.train.trained import checkpoint_of, config_of, read_record, read_weights
from tests.train import networks
from tests.train.launch import PROCESS, SILENCE, Launch, by_slurm, completed, environment, own_lines

pytestmark = pytest.mark.slow


def digests(workdir, step):
    """A digest of 64 bits of every array of a checkpoint, which is the same on any mesh."""
    return read_record((workdir / "checkpoints" / str(step)).absolute())["arrays"]


def assert_same(tiny, workdir, reference):
    """Asserts that two runs are the same, bit for bit, in all that their steps leave."""
    assert str(tiny.lines(workdir)) == str(tiny.lines(reference))  # nan is nan
    assert tiny.checkpoints(workdir) == tiny.checkpoints(reference)
    assert digests(workdir, 8) == digests(reference, 8)
    assert (workdir / "interventions.jsonl").read_text() == (reference / "interventions.jsonl").read_text()
    measured, expected = read_measurements(workdir), read_measurements(reference)
    assert measured.keys() == expected.keys()
    for name, (steps, values) in expected.items():
        assert steps.tolist() == measured[name][0].tolist(), name
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
    return workdir, completed(tiny, workdir, 2, late={0: 3})


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

    completed(tiny, workdir, 4, told=by_slurm, late={3: 2})
    assert_same(tiny, workdir, alone)


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_process_that_hangs_is_named_and_ends_the_other(hanging, tiny, tmp_path):
    launch = Launch(tiny, tmp_path / "run", 2, faults={hanging: "SIGSTOP:3"})
    code, _, errors = launch.end_of(1 - hanging)
    launch.kill()
    assert code == 1
    assert f"process {hanging} of 2" in errors and f"has not been heard of for {SILENCE} s" in errors


@pytest.mark.skipif(bool(networks.missing()), reason=networks.missing())
def test_a_network_that_is_cut_ends_both(tiny, tmp_path):
    with networks.Networks() as hosts:
        launch = Launch(tiny, tmp_path / "run", 2, networks=hosts, faults={1: f"{hosts.cut(1)}:3"})
        ends = launch.ends()
    assert [code for code, *_ in ends] == [1, 1]
    for number, (*_, errors) in enumerate(ends):
        assert f"process {1 - number} of 2" in errors and f"has not been heard of for {SILENCE} s" in errors


def test_a_process_with_another_config_is_named_before_anything_runs(tiny, tmp_path):
    ends = Launch(tiny, tmp_path / "run", 2, own={1: ["--config.train.steps=9"]}).ends()
    assert [code for code, *_ in ends] == [1, 1]
    line = "has another config than process 0"
    assert line in ends[0][2] and "train.steps (there 9, here 8)" in ends[0][2]
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def elsewhere(together, tmp_path_factory):
    """A copy of the run of two processes, to be worked on."""
    workdir = tmp_path_factory.mktemp("elsewhere") / "run"
    return shutil.copytree(together[0], workdir)


@pytest.mark.parametrize("mesh", [(1, 1, 1, 1), (1, 2, 2, 2)], ids=str)
def test_what_two_processes_save_is_restored_on_any_mesh(mesh, tiny, elsewhere):
    path = checkpoint_of(elsewhere)
    record, sizes = read_record(path), MeshConfig(*mesh)
    config = config_of(path, record)
    wider = dataclasses.replace(config, mesh=sizes, train=dataclasses.replace(config.train, batch_size=8))
    program = build(wider)
    with Checkpoints(elsewhere / "checkpoints", config.checkpoint) as checkpoints:
        state, _ = checkpoints.restore(8, program.abstract_state)
    arrays = leaves_by_path(state)
    saved = tiny.arrays(elsewhere)
    assert arrays.keys() == saved.keys()
    for name, array in saved.items():
        assert np.asarray(arrays[name]).tobytes() == array.tobytes(), name
    alone = read_weights(path, record, config, make_mesh(sizes))  # only the parameters
    jax.tree.map(lambda one, all_: np.testing.assert_allclose(one, all_, rtol=1e-5), alone, program.merge(state))


def test_four_processes_on_another_mesh_take_what_two_have_saved(tiny, elsewhere):
    (_, said, _), *_ = completed(tiny, elsewhere, 4, options=["--config.mesh.replica=1", "--config.mesh.fsdp=4"])
    assert "is complete: 8 steps" in said  # restored, and every array is by its digest what was saved
    assert "8" in tiny.checkpoints(elsewhere) and "8.damaged" not in tiny.checkpoints(elsewhere)


def test_an_incident_of_two_processes_is_replayed_by_one(elsewhere):
    command = [sys.executable, str(PROCESS), "diagnose", f"--workdir={elsewhere}", "--replay=6"]
    replay = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert replay.returncode == 0, replay.stderr
    assert "Replaying steps 5 to 6 from checkpoint 4" in replay.stdout and "Bitwise as it was" in replay.stdout
    report = json.loads((elsewhere / "incidents" / "6" / "replay" / "report" / "diagnose.json").read_text())
    assert report["cause"] == "nonfinite"
