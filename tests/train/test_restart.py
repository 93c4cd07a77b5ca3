"""First moments that start anew after a skipped step: of one planted spike, on meshes, and of a run that goes on."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.planting.gradients import changed_gradients
from jaxstab.diagnose import find_causes, read_history
from jaxstab.table import path_of
from jaxstab.train.packed import unpack
from jaxstab.train.program import build
from tests.train.test_options import HYPERS, config_of
from tests.train.test_recovery import MARKED, hurt

RESTARTS = {"optimizer.restart_above": 4.0, "stability.on_spike": "skip"}
MESH = {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
BEFORE, LAYER = 70, 1  # the guard's rule flags none of the first 64 steps


def tokens(step):
    return jnp.asarray(np.random.default_rng(step).integers(0, 31, (4, 9)), jnp.int32)


def spike(path, gradient):
    """That of one layer's matrix is 100 times itself."""
    return gradient.at[LAYER].multiply(100) if "up_proj/kernel" in path else gradient


def arrays(state):
    return {path_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def stepped(mesh):
    """The state before a spike, after the step with it, and after one more, with the metrics of both steps."""
    plain, spiking = (build(config_of(RESTARTS | mesh), end=3) for _ in range(2))
    state = plain.init(0)
    for step in range(BEFORE):
        state, _ = plain.step(state, tokens(step), HYPERS)
    before = arrays(state)
    with changed_gradients(spike):
        state, metrics = spiking.step(state, tokens(BEFORE), HYPERS)
    after = arrays(state)
    state, later = plain.step(state, tokens(BEFORE + 1), HYPERS)
    return before, after, arrays(state), unpack(metrics)[0], unpack(later)[0]


@pytest.fixture(scope="module")
def on_one_device():
    return stepped({})


def test_the_matrix_that_spiked_loses_its_momentum_and_nothing_else_changes(on_one_device):
    before, after, later, metrics, _ = on_one_device
    assert (metrics["train/skipped"], metrics["train/restarted"]) == (1, 1)
    changed = {
        path for path in before if not path.startswith("guard") and not np.array_equal(before[path], after[path])
    }
    (moment,) = changed
    assert "/mu/" in moment and moment.endswith("up_proj/kernel")
    assert np.all(after[moment][LAYER] == 0) and np.all(before[moment][LAYER] != 0)
    np.testing.assert_array_equal(after[moment][1 - LAYER], before[moment][1 - LAYER])
    grown = np.abs(later[moment][LAYER]).mean() / np.abs(later[moment][1 - LAYER]).mean()
    assert 0.05 < grown < 1, "it grows back from one gradient"


@pytest.mark.slow
def test_eight_devices_do_the_same(on_one_device):
    sharded = stepped(MESH)
    for alone, together in zip(on_one_device[:3], sharded[:3], strict=True):
        assert alone.keys() == together.keys()
        for path in (path for path in alone if "/mu/" in path):
            np.testing.assert_allclose(together[path], alone[path], rtol=1e-2, atol=1e-5, err_msg=path)
    for alone, together in zip(on_one_device[3:], sharded[3:], strict=True):
        assert together["train/restarted"] == alone["train/restarted"]
        np.testing.assert_allclose(together["train/loss"], alone["train/loss"], rtol=1e-4)


@pytest.mark.slow
def test_a_run_that_goes_on_from_before_the_skip_does_so_again(tiny, tmp_path, monkeypatch):
    hurt(monkeypatch.setattr, {4: "inf_gradient"})
    options = [*MARKED, "--config.stability.on_nonfinite=skip", "--config.optimizer.restart_above=9"]
    assert tiny.run(tmp_path / "run", *options, "--config.checkpoint.keep_last=4") == 0
    assert [line["step"] for line in tiny.steps(tmp_path / "run") if line["train/restarted"]] == [5]
    assert [each.cause for each in find_causes(read_history(tmp_path / "run"))] == ["nonfinite"], "no moment is lost"
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for step in ("8", "6"):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / step)
    assert tiny.run(tmp_path / "again", *options, "--config.checkpoint.keep_last=4") == 0
    tiny.assert_same_arrays(tmp_path / "again", tmp_path / "run")
