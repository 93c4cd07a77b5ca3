"""sigma_reparam's power vectors are state of the run: exact over a kill, and advanced once per step."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstab.data import DataConfig
from jaxstab.model.config import ModelConfig
from jaxstab.optimize import Hypers, OptimizerConfig
from jaxstab.reparam import ReparamConfig
from jaxstab.train.config import Config, TrainConfig
from jaxstab.train.program import build

KILLED = Path(__file__).with_name("test_resume.py")  # as a script: a run that is killed in a place
SIGMA = ["--config.reparam.method=sigma_reparam"]


def vectors(arrays):
    return {path: array for path, array in arrays.items() if path.startswith("reparam/")}


def test_a_run_killed_in_a_step_goes_on_with_the_same_vectors(tiny, tmp_path):
    reference, workdir = tmp_path / "reference", tmp_path / "run"
    assert tiny.run(reference, *SIGMA) == 0
    command = [sys.executable, KILLED, "step", "sigma_reparam", *tiny.command(workdir, *SIGMA)[1:]]
    environment = {**os.environ, "PYTHONPATH": str(KILLED.parents[2])}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed
    assert "6" not in tiny.checkpoints(workdir)
    assert tiny.run(workdir, *SIGMA) == 0
    tiny.assert_same_end(workdir, reference)

    earlier, last = (vectors(tiny.arrays(workdir, step)) for step in (6, 8))
    assert len(last) == 8, "six kinds of matrices in a block, the embedding and lm_head"
    for path, u in last.items():
        np.testing.assert_allclose(np.linalg.norm(u, axis=-1), 1, rtol=1e-5)
        assert u.dtype == np.float32 and not np.array_equal(u, earlier[path]), path


def program(accumulation):
    model = ModelConfig(width=16, layers=2, heads=2, vocabulary=31, max_length=8, remat="none")
    train = TrainConfig(batch_size=8, accumulation=accumulation, loss_chunk=8, steps=8)
    config = Config(
        model=model,
        reparam=ReparamConfig(method="sigma_reparam"),
        optimizer=OptimizerConfig(warmup=1),
        data=DataConfig(length=8),
        train=train,
    )
    return build(config)


def two_steps(accumulation):
    """The state after each of them."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 31, (2, 8, 9)), jnp.int32)
    built, states = program(accumulation), []
    state = built.init(0)
    for batch in tokens:
        state, _ = built.step(state, batch, Hypers(jnp.float32(1e-2), jnp.float32(0.1)))
        states.append(jax.device_get(state))
    return states


def test_micro_batches_make_the_large_batch_s_update_and_advance_the_vectors_once():
    def close(left, right, rtol, atol):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)

    (middle, once), (_, many) = two_steps(1), two_steps(4)
    close(*(optax.tree_utils.tree_get(state.optimizer, "mu") for state in (once, many)), 1e-4, 1e-7)
    close(once.raw, many.raw, 1e-3, 1e-4)
    close(once.reparam, many.reparam, 0, 1e-5)

    weight = np.float64(middle.raw["layers"]["mlp"]["up_proj"]["kernel"]["weight"])
    before, after = (state.reparam[0]["layers"]["mlp"]["up_proj"]["kernel"] for state in (middle, many))
    advanced = np.einsum("lio,ljo,lj->li", weight, weight, before)  # u <- W W' u, one power iteration
    advanced /= np.linalg.norm(advanced, axis=-1, keepdims=True)
    np.testing.assert_allclose(after, advanced, atol=1e-5)
    again = np.einsum("lio,ljo,lj->li", weight, weight, advanced)
    again /= np.linalg.norm(again, axis=-1, keepdims=True)
    assert np.abs(again - advanced).max() > 1e-3, "a second iteration would have been seen"
