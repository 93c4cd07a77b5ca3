"""Every initial scale against the formula of its paper, and what is drawn against what the table says."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import initializers

from jaxstab.config import UserError, from_config_dict
from jaxstab.initialize import SCALES, draw, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.optimize import Hypers, OptimizerConfig, build
from jaxstab.reparam import reparameterize, wesar
from jaxstab.table import Row, read, rows
from jaxstab.train.config import resolve
from jaxstab.train.setup import reparameterized

D, N, V, F = 64, 6, 512, 256
CONFIG = ModelConfig(
    width=D, layers=N, heads=4, vocabulary=V, max_length=128, positions="learned", mlp="swiglu", bias=True
)
TABLE = read_table(CONFIG)
XAVIER = {name: np.sqrt(2 / (D + D)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
XAVIER |= {name: np.sqrt(2 / (D + F)) for name in ("gate_proj", "up_proj", "down_proj")}
HIDDEN = tuple(XAVIER)
DEEP = np.sqrt(1 / (2 * N))


def stds(scale):
    return {row.role: row.std for row in rows(scaled(TABLE, scale)) if row.is_matrix}


def everywhere(std, **others):
    return dict.fromkeys((*HIDDEN, "embed_tokens", "embed_positions", "lm_head"), std) | others


def factored(embed, head, **factors):
    found = {name: std * factors.get(name, 1.0) for name, std in XAVIER.items()}
    return found | {"embed_tokens": embed, "embed_positions": embed, "lm_head": head}


def value_like(factor):
    return dict.fromkeys(("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), factor)


FORMULAS = {
    "he": ({}, everywhere(D**-0.5, o_proj=D**-0.5 * DEEP, down_proj=np.sqrt(2 / (8 * N * D)))),
    "he, plain": ({"gain": 1.0, "depth_scaled": False}, everywhere(D**-0.5, down_proj=F**-0.5)),
    "small": ({}, everywhere(np.sqrt(2 / 5 / D), o_proj=np.sqrt(2 / 10 / N / D), down_proj=np.sqrt(2 / 10 / N / D))),
    "megatron": ({}, everywhere(np.sqrt(2 / 5 / D), o_proj=np.sqrt(2 / 10 / N / D), down_proj=np.sqrt(2 / 10 / N / D))),
    "xavier": (
        {},
        XAVIER
        | {"embed_positions": np.sqrt(2 / (128 + D))}
        | dict.fromkeys(("embed_tokens", "lm_head"), np.sqrt(2 / (V + D))),
    ),
    "normal": ({}, everywhere(0.02, o_proj=0.02 * DEEP, down_proj=0.02 * DEEP)),
    "normal, plain": ({"depth_scaled": False, "std": 0.1}, everywhere(0.1)),
    "ds_init": ({}, factored(D**-0.5, D**-0.5, **dict.fromkeys(HIDDEN, np.arange(1, N + 1) ** -0.5))),
    "ds_init, code": (
        {"reading": "code"},
        factored(D**-0.5, D**-0.5, **dict.fromkeys(HIDDEN, np.arange(1, N + 1) ** -0.25)),
    ),
    "autoinit": (
        {},
        everywhere(
            D**-0.5,
            **dict.fromkeys(("embed_tokens", "embed_positions"), 1.0),
            down_proj=(F * 0.35577551981735) ** -0.5,  # E silu(z)², by SciPy
        ),
    ),
    "fixup": (
        {},
        factored(
            D**-0.5,
            0.0,
            **dict.fromkeys(("q_proj", "k_proj", "v_proj"), (2 * N) ** (-1 / 6)),
            up_proj=(2 * N) ** -0.5,
            **dict.fromkeys(("o_proj", "down_proj"), 0.0),
        ),
    ),
    "t_fixup": ({}, factored((9 * N) ** -0.25 * D**-0.5, D**-0.5, **value_like(0.67 * N**-0.25))),
    "t_fixup, decoder": (
        {"side": "decoder"},
        factored((9 * N) ** -0.25 * D**-0.5, D**-0.5, **value_like((9 * N) ** -0.25)),
    ),
    "deepnorm": ({}, factored(D**-0.5, D**-0.5, **value_like((8 * N) ** -0.25))),
    "mup": ({"base_width": 16}, everywhere(0.01, **{"embed_tokens": 0.02, "embed_positions": 0.02, "lm_head": 0.005})),
    "complete_p": (
        {"base_width": 16, "base_depth": 3, "std": 0.1},
        everywhere(0.05, o_proj=0.025, down_proj=0.025, embed_tokens=0.1, embed_positions=0.1, lm_head=0.025),
    ),
    "yulan_mini": (
        {"base_width": 16, "sigma": 0.1},
        everywhere(
            0.05,
            **dict.fromkeys(("o_proj", "down_proj"), 0.05 * DEEP * 1.4 / np.sqrt(N)),
            **dict.fromkeys(("embed_tokens", "embed_positions", "lm_head"), 0.1),
        ),
    ),
}


def of(name):
    return SCALES[name.split(",")[0]](**FORMULAS[name][0])


def test_every_scale_has_a_formula_here():
    assert {name.split(",")[0] for name in FORMULAS} == set(SCALES)


@pytest.mark.parametrize("name", FORMULAS)
def test_stds_are_the_formulas(name):
    expected, found = FORMULAS[name][1], stds(of(name))
    assert set(found) == set(expected)
    for role, std in found.items():
        np.testing.assert_allclose(std, expected[role], rtol=1e-12, err_msg=role)


@pytest.mark.parametrize("name", FORMULAS)
def test_what_is_drawn_has_them_and_wesar_keeps_them(name):
    table = scaled(TABLE, of(name))
    weights = draw(jax.random.key(0), table)
    rep = reparameterize(table, wesar(sigma=0.01))
    merged = rep.merge(*rep.init(weights))
    for row, weight, kept in zip(rows(table), jax.tree.leaves(weights), jax.tree.leaves(merged), strict=True):
        if row.is_matrix:
            # The relative error of a measured std is 1/√(2n), here below 0.012; four of it.
            measured = np.std(weight, axis=(-2, -1))
            np.testing.assert_allclose(measured, np.broadcast_to(row.std, measured.shape), rtol=0.05, err_msg=row.path)
        np.testing.assert_allclose(kept, weight, rtol=1e-5)


def test_a_tied_head_can_t_begin_at_zero():
    tied = {**TABLE, "lm_head": {"kernel": TABLE["lm_head"]["kernel"].replace(tied="embed_tokens/embedding")}}
    with pytest.raises(UserError, match=r"lm_head/kernel begins at zero .*: model\.tie_embeddings=False"):
        scaled(tied, SCALES["fixup"]())


@pytest.mark.parametrize("reading", ["paper", "code"])
def test_depth_scaling_is_flaxs_variance_scaling(reading):
    """bzhangGo/zero passes gain (l+1)^(-1/2), l from 0, as the scale of fan_avg *variance* scaling."""
    power = {"paper": -1.0, "code": -0.5}[reading]
    found = stds(SCALES["ds_init"](reading))["up_proj"]
    for layer, std in enumerate(found):
        initializer = initializers.variance_scaling((layer + 1) ** power, "fan_avg", "normal")
        np.testing.assert_allclose(np.std(initializer(jax.random.key(layer), (D, F))), std, rtol=0.03)


def test_xavier_is_flaxs_glorot_normal():
    drawn = initializers.glorot_normal()(jax.random.key(0), (D, F))
    np.testing.assert_allclose(np.std(drawn), stds(SCALES["xavier"]())["up_proj"], rtol=0.03)


def test_depth_scaling_without_a_layer_axis_is_refused():
    table = read({"up": jax.ShapeDtypeStruct((4, 8), jnp.float32)}, {"up": "up_proj"})
    with pytest.raises(UserError, match="up has no layer axis"):
        scaled(table, SCALES["ds_init"]())
    with pytest.raises(UserError, match="no matrix is either"):
        scaled(table, SCALES["mup"]())


@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "fixup"])
def test_a_tied_matrix_is_stored_once_and_has_its_own_std(name):
    config = ModelConfig(width=D, layers=N, heads=4, vocabulary=V, max_length=8, tie_embeddings=True)
    table = scaled(read_table(config), of(name), embedding=lambda std, width: 1 / std)
    weights = draw(jax.random.key(0), table)
    rep = reparameterize(table)
    merged = rep.merge(*rep.init(weights))
    head = next(row for row in rows(table) if row.role == "lm_head")
    np.testing.assert_allclose(np.std(weights["lm_head"]["kernel"]), head.std, rtol=0.02)
    for before, after in zip(jax.tree.leaves(weights), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-7)


def columns(name):
    found = {row.path.removeprefix("layers/"): row for row in rows(scaled(TABLE, of(name)))}
    return {
        path: (row.learning_rate, row.decay, row.eps, row.multiplier)
        for path, row in found.items()
        if path in COLUMNS["mup"]
    }


# At 4 times the base width and twice the base depth: rate, decay, eps, forward multiplier.
COLUMNS = {
    "mup": {
        "embed_tokens/embedding": (1, 1, 1 / 4, 1),
        "lm_head/kernel": (1, 1, 1 / 4, 1 / 4),
        "norm/scale": (1, 0, 1 / 4, 1),
        "self_attn/q_proj/kernel": (1 / 4, 4, 1 / 4, 1),
        "self_attn/q_proj/bias": (1, 0, 1 / 4, 1),
        "mlp/down_proj/kernel": (1 / 4, 4, 1 / 4, 1),
        "mlp/down_proj/bias": (1, 0, 1 / 4, 1),
    },
    "complete_p": {
        "embed_tokens/embedding": (1, 1, 1 / 4, 1),
        "lm_head/kernel": (1, 1, 1 / 4, 1 / 4),
        "norm/scale": (1, 0, 1 / 4, 1),
        "self_attn/q_proj/kernel": (1 / 4, 4, 1 / 8, 1),
        "self_attn/q_proj/bias": (1, 0, 1 / 8, 1),
        "mlp/down_proj/kernel": (1 / 4, 4, 1 / 8, 1 / 2),
        "mlp/down_proj/bias": (1, 0, 1 / 8, 1 / 2),
    },
    "yulan_mini": {
        "embed_tokens/embedding": (1, 1, 1, 1),
        "lm_head/kernel": (1, 1, 1, 1),
        "norm/scale": (1, 0, 1, 1),
        "self_attn/q_proj/kernel": (1 / 4, 1, 1, 1),
        "self_attn/q_proj/bias": (1, 0, 1, 1),
        "mlp/down_proj/kernel": (1 / 4, 1, 1, 1.4 / np.sqrt(N)),
        "mlp/down_proj/bias": (1, 0, 1, 1.4 / np.sqrt(N)),
    },
}


def test_yulan_mini_s_gates_are_those_of_its_launch_scripts():
    values = importlib.import_module("configs.yulan_mini").get_config()
    stored = {row.path: row for row in rows(reparameterized(resolve(values))[2].table)}
    gates = {"q_proj": 0.3651483716701107, "v_proj": 0.3651483716701107, "o_proj": 0.03450327796711771}
    for name, gate in gates.items():
        np.testing.assert_allclose(stored[f"layers/self_attn/{name}/kernel/gate"].value, gate, rtol=1e-12)
    np.testing.assert_allclose(stored["layers/mlp/down_proj/kernel/gate"].value, gates["o_proj"], rtol=1e-12)
    assert "layers/mlp/up_proj/kernel/gate" not in stored and "embed_tokens/embedding/gate" not in stored
    assert stored["norm/scale/gate"].value == stored["lm_head/kernel/gate"].value == 1


@pytest.mark.parametrize("name", COLUMNS)
def test_multipliers_are_table_1s(name):
    assert columns(name) == COLUMNS[name]


def first_change(scale, width, layers):
    """RMS by which the final hidden states change in the first update of Adam: a coordinate check."""
    config = ModelConfig(width=width, layers=layers, heads=width // 16, vocabulary=32, max_length=8, remat="none")
    model, table = Transformer(config), scaled(read_table(config), scale)
    rep = reparameterize(table)
    tokens = jax.random.randint(jax.random.key(1), (4, 9), 0, 32)
    raw, state = rep.init(draw(jax.random.key(0), table))
    optimizer = build(OptimizerConfig(warmup=0), rep.table, 1)

    def run(raw, method):
        return model.apply({"params": rep.merge(raw, state)}, tokens[:, :-1], method=method)

    def loss(raw):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(run(raw, "__call__")), tokens[:, 1:, None], -1))

    @jax.jit
    def change(raw):
        hypers = Hypers(jnp.float32(1e-4), jnp.float32(0))
        updates, _ = optimizer.update.update(jax.grad(loss)(raw), optimizer.update.init(raw), raw, hypers=hypers)
        return run(jax.tree.map(jnp.add, raw, updates), "hidden") - run(raw, "hidden")

    return float(jnp.sqrt(jnp.mean(jnp.square(change(raw)))))


def growth(changes):
    return max(changes) / min(changes)


def test_under_mup_the_first_update_changes_hidden_states_alike_at_every_width():
    widths = (32, 128, 512)
    assert growth([first_change(SCALES["mup"](base_width=32), width, 2) for width in widths]) < 1.3
    assert growth([first_change(SCALES["normal"](depth_scaled=False), width, 2) for width in widths]) > 2


def test_under_complete_p_the_first_update_changes_hidden_states_alike_at_every_depth():
    depths = (2, 8, 32)
    assert growth([first_change(SCALES["complete_p"](base_width=32), 32, depth) for depth in depths]) < 1.3
    assert growth([first_change(SCALES["mup"](base_width=32), 32, depth) for depth in depths]) > 2


@pytest.mark.parametrize("rms", [0.0, 0.2])
def test_under_mup_muon_s_updates_have_the_same_spectral_norm_at_every_width(rms):
    """The condition of Yang, Simon and Bernstein 2023 (arXiv:2310.17813), which mup's rates for Adam would break."""
    values = {"rule": {"method": "muon", "muon": {"rms": rms}}, "schedule": {"method": "constant"}, "warmup": 0}
    hypers = Hypers(jnp.float32(1), jnp.float32(0))

    def spectral_norms(width):
        shapes = {"q_proj": (width, width), "up_proj": (width, 4 * width), "down_proj": (4 * width, width)}
        row = SCALES["mup"](base_width=32).row
        table = {role: row(Row(role, role, shape, (None, None), False), width) for role, shape in shapes.items()}
        update = build(from_config_dict(OptimizerConfig, values), table, 1).update
        gradient = jax.tree.map(lambda row: np.random.default_rng(0).normal(size=row.shape).astype("f4"), table)
        updates, _ = jax.jit(update.update)(gradient, update.init(gradient), gradient, hypers=hypers)
        return np.array([np.linalg.norm(updates[role], 2) for role in shapes])

    np.testing.assert_allclose(spectral_norms(128) / spectral_norms(32), 1, atol=0.1)


def test_a_gate_keeps_what_its_row_says():
    row = Row("w", "up_proj", (3, 4, 6), ("layers", "embed", "mlp"), True)
    assert (row.gate(1.0).shape, row.gate(1.0).axes) == ((3,), ("layers",))
    assert (row.gate(None, -1).shape, row.gate(None, -1).axes) == ((3, 6), ("layers", "mlp"))
    assert (row.gate(None, -2).shape, row.gate(None, -2).axes) == ((3, 4), ("layers", "embed"))
