"""Loss and gradients on every kind of mesh are those of one device, however matrices are stored."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxstab import scale
from jaxstab.model.config import ModelConfig
from jaxstab.scale import MeshConfig
from jaxstab.train import objective
from jaxstab.train.config import Config
from jaxstab.train.program import build

BASE = Config()
BATCH, LENGTH = 8, 16
MODEL = ModelConfig(16, 2, heads=4, kv_heads=2, vocabulary=32, max_length=LENGTH, remat="none")
TOKENS = np.random.default_rng(0).integers(0, 32, (BATCH, LENGTH + 1)).astype(np.int32)
MESHES = [(8, 1, 1, 1), (4, 2, 1, 1), (2, 2, 2, 1), (1, 4, 2, 1), (1, 2, 2, 2)]
METHODS = ["identity", "wesar", "weight_norm", "sigma_reparam"]


def program_of(method, mesh=(1, 1, 1, 1)):
    config = dataclasses.replace(
        BASE,
        model=MODEL,
        reparam=dataclasses.replace(BASE.reparam, method=method),
        mesh=MeshConfig(*mesh),
        data=dataclasses.replace(BASE.data, length=LENGTH),
        train=dataclasses.replace(BASE.train, batch_size=BATCH, loss_chunk=8),
    )
    return build(config)


@functools.cache
def started(method):
    """The initial state, which is drawn on one device."""
    return jax.device_get(program_of(method).init(0))


@functools.cache
def gradients_on(mesh, method):
    """The loss, the gradients by the effective weights and by what is stored, and the method's next state."""
    program = program_of(method, mesh)
    setup, shardings = program.setup, jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state)

    def gradients(raw, reparam, tokens):
        weights, pullback, following = jax.vjp(lambda raw: setup.reparam.effective(raw, reparam), raw, has_aux=True)
        by_weights, sums, _ = objective.mean_gradients(setup, weights, tokens, 1)
        return sums.cross_entropy / sums.targets, by_weights, pullback(by_weights)[0], following

    placed = shardings.raw, shardings.reparam, scale.batch_sharding(setup.mesh)
    jitted = jax.jit(scale.on_mesh(setup.mesh, gradients), in_shardings=placed)
    return jax.device_get(jitted(started(method).raw, started(method).reparam, TOKENS))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_gradients_on_eight_devices_are_those_of_one(mesh, method):
    ours, theirs = gradients_on(mesh, method), gradients_on((1, 1, 1, 1), method)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.linalg.norm(np.float64(one) - other) <= 1e-5 * np.linalg.norm(np.float64(other))
