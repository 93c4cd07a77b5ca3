"""A step on eight devices is the step on one, with every array where the mesh's axes say."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from jaxstab import scale
from jaxstab.config import ConfigError
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EmbeddingConfig
from jaxstab.optimize import Hypers
from jaxstab.scale import MeshConfig
from jaxstab.table import Row
from jaxstab.train.config import Config
from jaxstab.train.packed import unpack
from jaxstab.train.program import build

UNIT = EmbeddingConfig(method="unit")
D, LAYERS, MLP, VOCABULARY, LENGTH, BATCH, STEPS = 16, 2, 64, 32, 8, 8, 10
BASE = Config()
BASE = dataclasses.replace(
    BASE,
    model=ModelConfig(
        D, LAYERS, heads=4, kv_heads=2, vocabulary=VOCABULARY, max_length=LENGTH, embedding=UNIT, remat="none"
    ),
    reparam=dataclasses.replace(BASE.reparam, method="wesar"),
    data=dataclasses.replace(BASE.data, length=LENGTH),
    train=dataclasses.replace(BASE.train, batch_size=BATCH, steps=STEPS, loss_chunk=4),
    optimizer=dataclasses.replace(BASE.optimizer, warmup=2),
)
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (STEPS, BATCH, LENGTH + 1)).astype(np.int32)
HYPERS = Hypers(np.float32(1e-3), np.float32(0.1))

# Devices along each axis, micro-batches, and the shape of what one device holds of four stored arrays.
MESHES = {
    "fsdp": (MeshConfig(fsdp=8), 1, {"embed": (32, 2), "q": (2, 2, 16), "k": (2, 2, 8), "down": (2, 64, 2)}),
    "fsdp x tensor, accumulating": (
        MeshConfig(fsdp=4, tensor=2),
        2,
        {"embed": (16, 4), "q": (2, 4, 8), "k": (2, 4, 4), "down": (2, 32, 4)},
    ),
    "replica x the rest x tensor": (
        MeshConfig(replica=2, fsdp=-1, tensor=2),
        1,
        {"embed": (16, 8), "q": (2, 8, 8), "k": (2, 8, 4), "down": (2, 32, 8)},
    ),
    "fsdp x sequence": (
        MeshConfig(fsdp=2, sequence=4),
        1,
        {"embed": (32, 8), "q": (2, 8, 16), "k": (2, 8, 8), "down": (2, 64, 8)},
    ),
}


def perturbed(raw):
    """Gates that differ from each other and from their initial values, layer by layer."""

    def leaf(path, value):
        if jax.tree_util.keystr(path).endswith("['gate']"):
            factors = np.linspace(0.5, 2, max(1, value.size)).reshape(value.shape).astype(np.float32)
            return jax.device_put(np.asarray(value) * factors, value.sharding)
        return value

    return jax.tree_util.tree_map_with_path(leaf, raw)


def program_of(mesh, accumulation=1):
    return build(dataclasses.replace(BASE, mesh=mesh, train=dataclasses.replace(BASE.train, accumulation=accumulation)))


def trained(program):
    """The initial raw parameters, every step's metrics, and the final state."""
    state = program.init(0)
    initial = jax.device_get(state.raw)
    state, metrics = state._replace(raw=perturbed(state.raw)), []
    for tokens in TOKENS:
        state, found = program.step(state, tokens, HYPERS)
        metrics.append(unpack(found))
    return initial, metrics, state


@functools.cache
def on_one_device():
    return trained(program_of(MeshConfig()))


def close(one, other, rtol, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def device_shapes(tree):
    """What the first device holds of every array."""
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, tree)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "accumulation", "expected"), MESHES.values(), ids=MESHES)
def test_ten_steps_on_eight_devices_are_those_of_one(mesh, accumulation, expected):
    program = program_of(mesh, accumulation)
    assert program.setup.mesh.size == 8
    initial, metrics, state = trained(program)
    their_initial, their_metrics, their_state = on_one_device()

    jax.tree.map(np.testing.assert_array_equal, initial, their_initial)
    close(metrics, their_metrics, rtol=1e-3, atol=1e-5)
    losses = [scalars["train/loss"] for scalars, _ in metrics]
    np.testing.assert_allclose(losses, [scalars["train/loss"] for scalars, _ in their_metrics], rtol=1e-5)
    close(state.raw, their_state.raw, rtol=1e-4, atol=2e-5)
    moments, theirs = (optax.tree_utils.tree_get(s.optimizer, "mu") for s in (state, their_state))
    close(moments, theirs, rtol=1e-3, atol=1e-6)

    raw_shapes = device_shapes(state.raw)
    assert raw_shapes == device_shapes(moments) == device_shapes(optax.tree_utils.tree_get(state.optimizer, "nu"))
    attention = raw_shapes["layers"]["self_attn"]
    assert {
        "embed": raw_shapes["embed_tokens"]["embedding"]["weight"],
        "q": attention["q_proj"]["kernel"]["weight"],
        "k": attention["k_proj"]["kernel"]["weight"],
        "down": raw_shapes["layers"]["mlp"]["down_proj"]["kernel"]["weight"],
    } == expected
    assert attention["q_proj"]["kernel"]["gate"] == (LAYERS,)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(
        lambda leaf: leaf.sharding, program.abstract_state
    )
    assert program.step._cache_size() == 1


@pytest.mark.slow
def test_evaluation_on_a_mesh_is_the_loss_that_a_step_finds():
    program = program_of(MeshConfig(replica=2, fsdp=2, tensor=2))
    state = program.init(0)
    weights = program.merge(state._replace(raw=perturbed(state.raw)))
    sums = program.evaluate(weights, TOKENS[0], np.ones(BATCH, bool))
    _, metrics, _ = on_one_device()
    np.testing.assert_allclose(sums.cross_entropy / sums.targets, metrics[0][0]["train/loss"], rtol=1e-5)
    half = program.evaluate(weights, TOKENS[0], np.arange(BATCH) < BATCH // 2)
    assert half.targets == sums.targets / 2 and half.cross_entropy < 0.7 * sums.cross_entropy


def test_one_device_is_the_default_and_minus_one_takes_what_is_left():
    assert scale.make_mesh(MeshConfig()).size == 1
    for config, expected in [
        (MeshConfig(fsdp=-1), (1, 8, 1, 1)),
        (MeshConfig(replica=-1, fsdp=2, tensor=2), (2, 2, 2, 1)),
        (MeshConfig(fsdp=4, tensor=2, sequence=-1), (1, 4, 2, 1)),
        (MeshConfig(fsdp=3), (1, 3, 1, 1)),
    ]:
        assert tuple(scale.make_mesh(config).shape.values()) == expected


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU that isn't here, as JAX tells of one."""

    id: int
    coords: tuple[int, int, int]
    device_kind: str = "TPU v6 lite"
    platform: str = "tpu"
    process_index: int = 0
    core_on_chip: int = 0
    slice_index: int = 0


@pytest.mark.parametrize("sizes", [(1, 16, 1, 1), (2, 8, 1, 1), (8, 2, 1, 1), (2, 4, 2, 1), (1, 2, 2, 4)])
def test_one_side_of_a_torus_may_be_divided_among_two_axes(sizes):
    chips = [Chip(4 * y + x, (x, y, 0)) for y in range(4) for x in range(4)]
    mesh = scale.make_mesh(MeshConfig(*sizes), chips)
    assert mesh.devices.shape == sizes
    assert sorted(chip.id for chip in mesh.devices.flat) == list(range(16))


def test_replicas_alone_are_divided_among_slices():
    chips = [Chip(8 * s + 2 * y + x, (x, y, 0), slice_index=s) for s in range(2) for y in range(4) for x in range(2)]
    mesh = scale.make_mesh(MeshConfig(replica=4, fsdp=-1), chips)
    of_replicas = [{chip.slice_index for chip in replica.flat} for replica in mesh.devices]
    assert mesh.devices.shape == (4, 4, 1, 1) and of_replicas == [{0}, {0}, {1}, {1}]
    with pytest.raises(ConfigError, match=r"1 replica\(s\), and the devices are in 2 slices.* a multiple of 2"):
        scale.make_mesh(MeshConfig(fsdp=-1), chips)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(fsdp=16), r"mesh=\(1, 16, 1, 1\) needs 16 devices, and there are 8"),
        (MeshConfig(fsdp=3, tensor=-1), r"mesh=\(1, 3, -1, 1\) doesn't divide the 8 devices"),
        (MeshConfig(fsdp=16, tensor=-1), r"mesh=\(1, 16, -1, 1\) doesn't divide the 8 devices"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        scale.make_mesh(config)


def test_an_axis_of_minus_one_takes_what_is_left_and_at_least_one():
    assert scale.mesh_sizes(MeshConfig(fsdp=-1), 8) == (1, 8, 1, 1)
    assert scale.mesh_sizes(MeshConfig(fsdp=-1, tensor=4), 8) == (1, 2, 4, 1)
    assert scale.mesh_sizes(MeshConfig(fsdp=-1, tensor=4), 1) == (1, 1, 4, 1)
    assert scale.mesh_sizes(MeshConfig(replica=2, fsdp=3), 1) == (2, 3, 1, 1)


def test_a_batch_that_does_not_spread_over_the_devices_is_refused():
    with pytest.raises(ConfigError, match=r"train\.batch_size=8 in 2 micro-batches .* over 8 data-parallel devices"):
        program_of(MeshConfig(fsdp=8), accumulation=2)


def test_an_axis_that_a_mesh_does_not_divide_stays_whole():
    mesh = scale.make_mesh(MeshConfig(fsdp=4, tensor=2))
    row = Row("w", "lm_head", (8, 33), ("embed", "vocab"), stacked=False)
    assert tuple(scale.spec(row, mesh)) == ("fsdp", None)
    assert tuple(scale.spec(row.replace(shape=(6, 34)), mesh)) == (None, "tensor")
    assert tuple(scale.spec(row.replace(axes=(None, None)), mesh)) == (None, None)
    assert tuple(scale.spec(row.gate(1.0), mesh)) == ()


def test_full_measurements_compare_parts_that_replicas_do_not_divide():
    """Eight rows make eight parts of one row, on two replicas; what they come to is what one device finds."""
    full = dataclasses.replace(BASE, stability=dataclasses.replace(BASE.stability, measure="full"))
    measured = []
    for mesh in (MeshConfig(replica=2), MeshConfig()):
        program = build(dataclasses.replace(full, mesh=mesh))
        scalars, vectors = program.measure(program.init(0), TOKENS[0], HYPERS)
        measured.append(jax.device_get((scalars["stability/gradient_noise_scale"], vectors)))
    assert "stability/gradient_variance/q_proj" in measured[0][1]
    close(*measured, rtol=1e-3, atol=1e-5)
