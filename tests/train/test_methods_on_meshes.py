"""Every registered method on eight devices: its state lies as its parameters do, and it trains as on one device."""

import jax
import numpy as np
import pytest

from jaxstab.table import rows
from jaxstab.train.document import REGISTRIES
from jaxstab.train.packed import unpack
from jaxstab.train.program import build
from tests.train.test_options import GOLDEN, HYPERS, TOKENS, changes_of, config_of

MESH = {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.sequence": 2}
CHOICES = {key: list(methods) for key, (_, methods) in REGISTRIES.items() if key != "init_search.method"}
STEPS = 5


def with_every_method(golden):
    """Few of the golden runs that together have every method of every registry."""
    missing, runs = {(key, method) for key, methods in CHOICES.items() for method in methods}, []
    while missing:
        best = max(golden, key=lambda combination: len(missing & set(combination)))
        assert missing & set(best), missing
        missing -= set(best)
        runs.append(best)
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("combination", with_every_method(list(GOLDEN)), ids=lambda run: "-".join(dict(run).values()))
def test_a_golden_run_on_eight_devices_begins_as_on_one(combination):
    program = build(config_of(changes_of(dict(combination)) | MESH), end=3)
    assert program.setup.mesh.size == 8
    state, losses = program.init(0), []
    for tokens in TOKENS[:STEPS]:
        state, metrics = program.step(state, tokens, HYPERS)
        losses.append(unpack(metrics)[0]["train/loss"])
    np.testing.assert_allclose(losses, GOLDEN[combination]["losses"][:STEPS], rtol=2e-5)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(
        lambda leaf: leaf.sharding, program.abstract_state
    )


@pytest.mark.parametrize(("key", "method"), [(key, method) for key in CHOICES for method in CHOICES[key]])
def test_what_is_stored_and_its_moments_are_split_alike(key, method):
    """A matrix is split over fsdp and tensor, its gates along it, and every moment as its parameter."""
    changes = {"model.mlp": "swiglu", "model.bias": True} if key == "reparam.method" else {}
    program = build(config_of({**changes, key: method, **MESH}), end=3)
    table, state = rows(program.setup.stored_table), program.abstract_state
    parameters = jax.tree.leaves(state.raw)
    for row, leaf in zip(table, parameters, strict=True):
        split = leaf.sharding.shard_shape(leaf.shape)
        names = [axis if size != part else None for axis, size, part in zip(row.axes, row.shape, split, strict=True)]
        divided = {"embed", "heads", "kv_heads", "mlp", "vocab"}
        expected = [
            axis if axis in divided and size % 2 == 0 else None for axis, size in zip(row.axes, row.shape, strict=True)
        ]
        assert names == expected, row.path
    paths = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.raw)}
    of_parameters = [
        (leaf, parameter)
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.optimizer, state.clip))
        for name, parameter in paths.items()
        if jax.tree_util.keystr(path).endswith(name) and leaf.shape == parameter.shape
    ]
    assert len(of_parameters) >= len(parameters)
    assert all(leaf.sharding == parameter.sharding for leaf, parameter in of_parameters)
