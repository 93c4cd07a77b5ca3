"""The training step on fixed tokens: its numbers and shapes; it compiles once, and a bad step changes nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import scale
from jaxstab.optimize import Hypers
from jaxstab.train import objective
from jaxstab.train import step as step_module
from jaxstab.train.config import default_config, resolve
from jaxstab.train.packed import unpack
from jaxstab.train.program import build

COLUMNS = (
    "train/loss",
    "train/grad_norm",
    "train/grad_norm_effective",
    "stability/update_ratio/embed_tokens",
    "stability/update_ratio/lm_head",
    "stability/update_ratio/q_proj",
    "stability/update_ratio/down_proj",
)
# One row per step; of measurements with a layer axis, the last layer.
GOLDEN = """
3.7692976 63.959766 1.899333 0.040141668 0.053574786 0.052192926 0.054598138
3.1474597 42.592762 1.3396257 0.068563625 0.095730849 0.081337579 0.092465386
2.2841194 32.380508 0.97444326 0.088031188 0.13299939 0.1060601 0.11970769
1.9639102 34.60358 1.0527174 0.074825779 0.1187847 0.088235214 0.097654246
1.6111766 36.942978 1.111509 0.05986692 0.10092749 0.069760904 0.078411669
1.2686031 25.653021 0.82109523 0.038787447 0.071353056 0.046952289 0.050249066
1.1896992 27.609779 0.83424455 0.022444464 0.040321916 0.026780903 0.027159669
1.0071101 20.14637 0.63533783 0.0097905109 0.017846901 0.012180845 0.011853061
"""
CHANGED = """
The first steps of a WeSaR run have changed. Where nobody meant to change the model, the initialization, the
reparameterization, the optimizer or a default, that is a mistake to be found. Where somebody did, or where a new JAX
draws other random numbers, tell so in the commit, and put these rows in the place of GOLDEN in {file}:

{rows}
"""
STEPS, BATCH, LENGTH, VOCABULARY = 8, 4, 16, 31


def tiny(**mesh):
    config = default_config()
    config.model.update(width=16, layers=2, heads=2, vocabulary=VOCABULARY, max_length=LENGTH)
    config.model.embedding.method = "unit"
    config.reparam.method = "wesar"
    config.optimizer.warmup = 3
    config.train.update(steps=STEPS, batch_size=BATCH, accumulation=2, loss_chunk=8)
    config.data.length = LENGTH
    config.mesh.update(mesh)
    return resolve(config)


class Trainer:
    """A program and its state, fed as a run feeds it."""

    def __init__(self, **mesh):
        self.config = tiny(**mesh)
        self.program = build(self.config)
        rates = self.config.optimizer.learning_rate, self.config.optimizer.weight_decay
        self.hypers = jax.device_put(Hypers(*map(jnp.float32, rates)), scale.replicated(self.program.setup.mesh))
        self.state = self.program.init(self.config.train.seed)

    def step(self, tokens):
        tokens = jax.device_put(tokens, scale.batch_sharding(self.program.setup.mesh))
        self.state, metrics = self.program.step(self.state, tokens, self.hypers)
        return unpack(metrics)


def batches():
    """int32 [STEPS, BATCH, LENGTH + 1]: squares modulo a prime, all of which but zero repeat."""
    count = STEPS * BATCH * (LENGTH + 1)
    return (np.arange(count, dtype=np.int64) ** 2 % VOCABULARY).astype(np.int32).reshape(STEPS, BATCH, LENGTH + 1)


def first_steps(**mesh):
    trainer, rows = Trainer(**mesh), []
    for tokens in batches():
        scalars, arrays = trainer.step(tokens)
        rows.append([np.ravel({**scalars, **arrays}[name])[-1] for name in COLUMNS])
    return np.array(rows, np.float64)


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2}], ids=str)
def test_the_first_steps_are_as_they_were(mesh):
    found = first_steps(**mesh)
    golden = np.array([line.split() for line in GOLDEN.strip().splitlines()], np.float64)
    rows = "\n".join(" ".join(f"{value:.8g}" for value in row) for row in found)
    if golden.shape != found.shape or not np.allclose(found, golden, rtol=1e-5, atol=0):
        pytest.fail(CHANGED.format(file=__file__, rows=rows))


def test_the_step_compiles_once(monkeypatch):
    traced_once = chex.assert_max_traces(step_module.train_step, n=1)
    monkeypatch.setattr(step_module, "train_step", traced_once)
    trainer = Trainer()
    for tokens in batches()[:3]:
        trainer.step(tokens)
    assert trainer.program.step._cache_size() == 1


def spec_of(leaf):
    return leaf.sharding.spec


def test_shapes_dtypes_and_shardings_of_state_and_metrics_stay():
    trainer = Trainer(fsdp=2)
    for tokens in batches()[:2]:
        scalars, arrays = trainer.step(tokens)
        state, program = trainer.state, trainer.program
        chex.assert_trees_all_equal_shapes_and_dtypes(state, program.abstract_state)
        chex.assert_tree_all_finite(state)
        assert jax.tree.map(spec_of, state) == jax.tree.map(spec_of, program.abstract_state)
        chex.assert_shape(list(scalars.values()), ())
        outside = {name: each for name, each in arrays.items() if "/sketch/" in name and "layers/" not in name}
        stacked = [each for name, each in arrays.items() if name not in outside or "_proj" in name]
        chex.assert_shape(stacked, (trainer.config.model.layers,))
        assert {each.shape for each in outside.values()} == {(1,), (trainer.config.model.layers,)}
        assert all(type(value) is float for value in scalars.values())
        chex.assert_type(list(arrays.values()), jnp.float32)
    assert int(state.step) == 2
    assert {*COLUMNS} <= {*scalars, *arrays}


BAD_GRADIENT, BAD_LOSS = 3, VOCABULARY - 1  # no squares


def poisoned(setup, weights, tokens, valid=None, real=objective.loss_sums):
    """The loss of a batch with one of the bad tokens is NaN: what is differentiated, and with BAD_LOSS its sums too."""
    loss, sums = real(setup, weights, tokens, valid)
    bad_loss = (tokens == BAD_LOSS).any()
    bad_gradient = bad_loss | (tokens == BAD_GRADIENT).any()
    return jnp.where(bad_gradient, jnp.nan, 1.0) * loss, jax.tree.map(lambda x: jnp.where(bad_loss, jnp.nan, x), sums)


def without_guard(state):
    return state._replace(guard=None)


def test_a_step_that_is_not_finite_changes_nothing_until_the_host_has_answered(monkeypatch):
    monkeypatch.setattr(objective, "loss_sums", poisoned)
    trainer, good = Trainer(), batches()
    unharmed = []
    for tokens in good[:2]:
        trainer.step(tokens)
        unharmed.append(jax.device_get(trainer.state))
    for bad in (BAD_GRADIENT, BAD_LOSS):
        trainer.state = trainer.program.init(trainer.config.train.seed)
        trainer.step(good[0])
        for tokens in (np.where(good[1] == good[1].max(), bad, good[1]), good[1]):
            # The second batch is a good one, dispatched before the host hears of the first.
            scalars, _ = trainer.step(tokens)
            chex.assert_trees_all_equal(without_guard(jax.device_get(trainer.state)), without_guard(unharmed[0]))
            chex.assert_trees_all_equal(trainer.state.guard.windows, unharmed[0].guard.windows)
            assert scalars["train/halted"] == 1
        assert np.isfinite(scalars["train/loss"])
        trainer.state = trainer.state._replace(guard=jax.device_put(unharmed[0].guard))
        trainer.step(good[1])
        chex.assert_trees_all_equal(jax.device_get(trainer.state), unharmed[1])
