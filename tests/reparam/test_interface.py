"""The interface by its hardest customers: what a method may store, draw, carry along and be applied to.

The methods here are sketches of published ones, each with the interface's own means only.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxstab import optimize, scale, stability, table
from jaxstab.initialize import draw, he, scaled
from jaxstab.model.loss import LossSums
from jaxstab.optimize import Hypers
from jaxstab.reparam import Method, reparameterize, wesar
from jaxstab.train import objective
from jaxstab.train.config import Config
from jaxstab.train.setup import Setup
from jaxstab.train.state import TrainState
from jaxstab.train.step import train_step


def a_row_per_output(row, **changes):
    """The row of a vector over a matrix's outputs, stacked where the matrix is."""
    return row.replace(
        role="gate", shape=(*row.shape[:-2], row.shape[-1]), axes=(*row.axes[:-2], row.axes[-1]), **changes
    )


def weight_norm():
    """w = g v / |v| for every output unit, the norm differentiated (Salimans and Kingma 2016)."""

    def init(row, weight, std, key):
        return {"direction": weight, "gain": jnp.linalg.norm(weight, axis=0)}, ()

    def effective(row, stored, state):
        direction = stored["direction"]
        return direction * (stored["gain"] / jnp.linalg.norm(direction, axis=0)), state

    def rows(row):
        return {"direction": row, "gain": a_row_per_output(row, decay=0.0, std=None)}

    return Method(lambda row: row.is_matrix, rows, init, effective)


def sigma_reparam():
    """W = g V / sigma(V), with one power iteration a call on a drawn vector (Zhai et al. 2023)."""

    def normal(vector):
        return vector / jnp.linalg.norm(vector)

    def init(row, weight, std, key):
        return {"weight": weight, "gate": jnp.float32(1.5)}, {"u": normal(jax.random.normal(key, weight.shape[:1]))}

    def effective(row, stored, state):
        weight = stored["weight"]
        v = jax.lax.stop_gradient(normal(state["u"] @ weight))
        u = jax.lax.stop_gradient(normal(weight @ v))
        return stored["gate"] / (u @ weight @ v) * weight, {"u": u}

    return Method(
        lambda row: row.is_matrix and row.role != "embed_tokens",
        lambda r: {"weight": r, "gate": r.gate(1.5)},
        init,
        effective,
    )


def low_rank(rank, *roles):
    """W = U V, started at the nearest such product by singular values."""

    def init(row, weight, std, key):
        u, s, v = jnp.linalg.svd(weight, full_matrices=False)
        root = jnp.sqrt(s[:rank])
        return {"u": u[:, :rank] * root, "v": root[:, None] * v[:rank]}, ()

    def rows(row):
        *stack, fan_in, fan_out = row.shape
        *layers, into, out = row.axes
        return {
            "u": row.replace(shape=(*stack, fan_in, rank), axes=(*layers, into, None), std=None),
            "v": row.replace(shape=(*stack, rank, fan_out), axes=(*layers, None, out), std=None),
        }

    return Method(
        lambda row: row.role in roles, rows, init, lambda row, stored, state: (stored["u"] @ stored["v"], state)
    )


# A stack of two layers with matrices of several shapes, and one matrix outside it.
TREE = {
    "embed": jax.ShapeDtypeStruct((9, 4), jnp.float32),
    "layers": {
        "q": jax.ShapeDtypeStruct((2, 4, 4), jnp.float32),
        "up": jax.ShapeDtypeStruct((2, 4, 6), jnp.float32),
        "down": jax.ShapeDtypeStruct((2, 6, 4), jnp.float32),
        "norm": jax.ShapeDtypeStruct((2, 4), jnp.float32),
    },
    "head": jax.ShapeDtypeStruct((4, 9), jnp.float32),
}
ROLES = {"embed": "embed_tokens", "q$": "q_proj", "up$": "up_proj", "down$": "down_proj", "norm": "norm"}
TABLE = scaled(table.read(TREE, ROLES | {"head": "lm_head"}), he())
WEIGHTS = draw(jax.random.key(0), TABLE)
COTANGENT = draw(jax.random.key(1), TABLE)
METHODS = {
    "weight norm": (weight_norm(),),
    "sigma": (sigma_reparam(),),
    "low rank": (low_rank(2, "q_proj", "up_proj"),),
    "wesar": (wesar(),),
    "low rank of weight norm": (low_rank(2, "q_proj"), weight_norm()),
    "low rank under wesar": (low_rank(3, "q_proj", "down_proj"), wesar(sigma=0.1)),
}


def close(one, other, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def used_and_pulled_back(rep):
    """(raw, state, cotangent) -> (effective weights, gradient by what is stored)."""

    @jax.jit
    def both(raw, state, cotangent):
        weights, pullback = jax.vjp(lambda raw: rep.merge(raw, state), raw)
        return weights, pullback(cotangent)[0]

    return both


@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
def test_what_is_stored_is_what_the_table_says(methods):
    rep = reparameterize(TABLE, *methods)
    raw, state = rep.init(WEIGHTS)
    assert jax.tree.map(lambda row: row.shape, rep.table) == jax.tree.map(lambda leaf: leaf.shape, raw)
    paths = [table.path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(raw)]
    assert [row.path for row in table.rows(rep.table)] == paths
    for row in table.rows(rep.table):
        assert len(row.axes) == len(row.shape) and (not row.stacked or row.layers == 2)
    weights = rep.merge(raw, state)
    assert jax.tree.structure(weights) == jax.tree.structure(TABLE)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((raw, state, weights)))
    np.testing.assert_array_equal(weights["layers"]["norm"], WEIGHTS["layers"]["norm"])


HARDEST = {name: METHODS[name] for name in ("sigma", "low rank of weight norm", "low rank under wesar")}


@pytest.mark.parametrize("methods", HARDEST.values(), ids=HARDEST)
def test_a_stack_is_its_layers_one_by_one(methods):
    """Nothing of one layer reaches another: effective weights and gradients are those of the unstacked matrices."""
    rep = reparameterize(TABLE, *methods)
    raw, state = rep.init(WEIGHTS)
    weights, gradient = used_and_pulled_back(rep)(raw, state, COTANGENT)
    of_one = used_and_pulled_back(
        reparameterize(
            jax.tree.map(
                lambda row: row.replace(shape=row.shape[1:], axes=row.axes[1:], stacked=False), TABLE["layers"]
            ),
            *methods,
        )
    )
    stacked_state = [link["layers"] if link else () for link in state]
    stacks = (raw["layers"], stacked_state, COTANGENT["layers"], weights["layers"], gradient["layers"])
    for index in range(2):
        one_raw, one_state, cotangent, *expected = jax.tree.map(lambda leaf, index=index: leaf[index], stacks)
        close(of_one(one_raw, one_state, cotangent), tuple(expected))


@pytest.mark.parametrize("methods", HARDEST.values(), ids=HARDEST)
def test_the_gradient_is_that_of_differences(methods):
    """Along random directions, with the power iteration's vectors held where the iteration leaves them."""
    rep = reparameterize(TABLE, *methods)
    raw, state = rep.init(WEIGHTS)
    advance = jax.jit(rep.effective)
    for _ in range(40):
        state = advance(raw, state)[1]
    _, gradient = used_and_pulled_back(rep)(raw, state, COTANGENT)

    @jax.jit
    def along(raw, direction, step):
        moved = jax.tree.map(lambda leaf, d: leaf + step * d, raw, direction)
        pairs = zip(jax.tree.leaves(rep.merge(moved, state)), jax.tree.leaves(COTANGENT), strict=True)
        return sum(jnp.vdot(weight, cotangent) for weight, cotangent in pairs)

    with jax.enable_x64(True):
        double = functools.partial(jax.tree.map, lambda leaf: np.asarray(leaf, np.float64))
        state, raw = double(state), double(raw)
        for seed in range(3):
            rng = np.random.default_rng(seed)
            direction = jax.tree.map(lambda leaf, rng=rng: rng.normal(size=leaf.shape) * np.abs(leaf).mean(), raw)
            expected = (along(raw, direction, 1e-6) - along(raw, direction, -1e-6)) / 2e-6
            pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
            np.testing.assert_allclose(sum(np.vdot(g, d) for g, d in pairs), expected, rtol=2e-4)


def test_weight_norm_is_flax_s():
    rep = reparameterize(TABLE, weight_norm())
    raw, state = rep.init(WEIGHTS)
    stored = jax.tree.map(lambda leaf: leaf[1], raw["layers"]["up"])
    stored = stored | {"gain": stored["gain"] * 3}
    raw["layers"]["up"] = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), stored)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    module = nn.WeightNorm(nn.Dense(6, use_bias=False), variable_filter={"kernel"})

    def flax_output(stored):
        params = {
            "layer_instance": {"kernel": stored["direction"]},
            "layer_instance/kernel/scale": stored["gain"],
        }
        return module.apply({"params": params}, x)

    close(x @ rep.merge(raw, state)["layers"]["up"][0], flax_output(stored))
    square = {
        "flax": jax.grad(lambda stored: jnp.sum(flax_output(stored) ** 2))(stored),
        "ours": jax.grad(lambda raw: jnp.sum((x @ rep.merge(raw, state)["layers"]["up"][0]) ** 2))(raw),
    }
    close(jax.tree.map(lambda leaf: leaf[0], square["ours"]["layers"]["up"]), square["flax"], rtol=1e-4, atol=1e-5)


def power_iterations(weight, u, count):
    for _ in range(count):
        v = u @ weight / np.linalg.norm(u @ weight)
        u = weight @ v / np.linalg.norm(weight @ v)
    return u


def test_state_advances_once_a_call_and_stays_where_it_is_dropped():
    rep = reparameterize(TABLE, sigma_reparam())
    raw, start = rep.init(WEIGHTS, jax.random.key(3))
    state = start
    for calls in range(1, 4):
        rep.merge(raw, state)
        _, state = rep.effective(raw, state)
        for layer in range(2):
            expected = power_iterations(
                np.float64(raw["layers"]["up"]["weight"][layer]),
                np.float64(start[0]["layers"]["up"]["u"][layer]),
                calls,
            )
            np.testing.assert_allclose(state[0]["layers"]["up"]["u"][layer], expected, rtol=1e-4, atol=1e-5)
    advance = jax.jit(rep.effective)
    for _ in range(60):
        weights, state = advance(raw, state)
    np.testing.assert_allclose(np.linalg.norm(weights["layers"]["down"], 2, axis=(1, 2)), 1.5, rtol=1e-4)
    assert state[0]["embed"] == ()


def test_what_a_method_draws_follows_from_the_key_the_path_and_the_layer():
    rep = reparameterize(TABLE, sigma_reparam())
    drawn = [rep.init(WEIGHTS, jax.random.key(seed))[1][0]["layers"] for seed in (0, 0, 1)]
    jax.tree.map(np.testing.assert_array_equal, drawn[0], drawn[1])
    assert np.abs(drawn[0]["q"]["u"] - drawn[2]["q"]["u"]).max() > 0.1
    assert np.abs(drawn[0]["q"]["u"] - drawn[0]["up"]["u"]).max() > 0.1
    assert np.abs(drawn[0]["q"]["u"][0] - drawn[0]["q"]["u"][1]).max() > 0.1


def test_a_low_rank_product_is_the_nearest_one_and_exact_at_full_rank():
    raw, state = (rep := reparameterize(TABLE, low_rank(2, "q_proj", "up_proj"))).init(WEIGHTS)
    weights = rep.merge(raw, state)
    for layer in range(2):
        error = np.linalg.norm(weights["layers"]["up"][layer] - WEIGHTS["layers"]["up"][layer])
        discarded = np.linalg.svd(WEIGHTS["layers"]["up"][layer], compute_uv=False)[2:]
        np.testing.assert_allclose(error, np.linalg.norm(discarded), rtol=1e-4)
    assert np.linalg.matrix_rank(weights["layers"]["q"], tol=1e-4).tolist() == [2, 2]
    rows = {row.path: row for row in table.rows(rep.table)}
    assert (rows["layers/up/u"].shape, rows["layers/up/v"].shape) == ((2, 4, 2), (2, 2, 6))
    full = reparameterize(TABLE, low_rank(4, "q_proj", "up_proj"))
    close(full.merge(*full.init(WEIGHTS)), WEIGHTS, rtol=1e-4)


def test_methods_compose_the_first_one_nearest_to_the_model():
    sigma = 0.1
    rep = reparameterize(TABLE, low_rank(4, "q_proj"), wesar(sigma))
    raw, state = rep.init(WEIGHTS)
    assert {row.path for row in table.rows(rep.table) if row.path.startswith("layers/q")} == {
        f"layers/q/{factor}/{name}" for factor in "uv" for name in ("weight", "gate")
    }
    for factor in "uv":
        stored = raw["layers"]["q"][factor]
        np.testing.assert_allclose(np.sqrt(np.square(stored["weight"]).mean((1, 2))), sigma, rtol=1e-5)
        assert stored["gate"].shape == (2,)
    close(rep.merge(raw, state), WEIGHTS, rtol=1e-4, atol=1e-5)
    assert raw["head"].keys() == {"weight", "gate"}


def test_an_imported_model_is_wrapped_by_its_measured_scale():
    """Without an initial scale every gate is the root mean square of what it gates, over sigma."""
    rng = np.random.default_rng(0)
    imported = jax.tree.map(lambda leaf: rng.normal(1, rng.random() + 0.1, leaf.shape).astype(np.float32), TREE)
    imported["layers"]["up"][1] *= 10
    rep = reparameterize(table.read(TREE, ROLES | {"head": "lm_head"}), wesar(sigma=0.02))
    raw, state = rep.init(imported)
    close(rep.merge(raw, state), imported)
    for name in ("q", "up", "down"):
        rms = np.sqrt(np.square(imported["layers"][name]).mean((1, 2)))
        np.testing.assert_allclose(raw["layers"][name]["gate"], rms / 0.02, rtol=1e-5)
        np.testing.assert_allclose(np.sqrt(np.square(raw["layers"][name]["weight"]).mean((1, 2))), 0.02, rtol=1e-5)
    assert all(row.value is None for row in table.rows(rep.table) if row.role == "gate")


class Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.into = nnx.Linear(3, 5, rngs=rngs)
        self.out = nnx.Linear(5, 2, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.into(x)))


def test_an_nnx_module_is_reparameterized_in_three_lines():
    module, x = Perceptron(nnx.Rngs(0)), jnp.ones((4, 3))
    definition, parameters = nnx.split(module, nnx.Param)
    tree = nnx.to_pure_dict(parameters)

    rep = reparameterize(
        table.read(tree, {"into/kernel": "up_proj", "out/kernel": "down_proj", "bias": "bias"}), wesar()
    )
    raw, state = rep.init(tree)

    def output(raw):
        merged = nnx.State(jax.tree.map(lambda leaf: leaf, parameters))
        nnx.replace_by_pure_dict(merged, rep.merge(raw, state))
        return nnx.merge(definition, merged)(x)

    close(output(raw), module(x))
    assert raw["into"]["bias"].shape == (5,) and raw["into"]["kernel"]["gate"].shape == ()
    gradient = jax.grad(lambda raw: jnp.sum(output(raw)))(raw)
    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(gradient))


# State in training: a linear model that predicts a token's number from the embedding through two stacked layers.
CONFIG = dataclasses.replace(
    Config(),
    optimizer=dataclasses.replace(Config().optimizer, warmup=0),
    train=dataclasses.replace(Config().train, batch_size=8, steps=10),
)


def losses(setup, weights, tokens):
    hidden = weights["embed"][tokens]
    for index in range(2):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], weights["layers"])
        hidden = hidden + jnp.tanh(hidden * layer["norm"] @ layer["up"]) @ layer["down"] + hidden @ layer["q"]
    logits = hidden @ weights["head"]
    total = jnp.sum(jnp.square(logits - jax.nn.one_hot(tokens, 9)))
    return total, (LossSums(total, total, total, jnp.float32(tokens.size)), {})


@pytest.fixture
def linear_model(monkeypatch):
    monkeypatch.setattr(objective, "loss_sums", losses)


def one_step(accumulation, tokens, raw, state):
    rep = reparameterize(TABLE, sigma_reparam())
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, accumulation=accumulation))
    optimizer = optimize.build(config.optimizer, rep.table, 10)
    mesh = scale.make_mesh(config.mesh)
    start = TrainState(
        jnp.int32(0), raw, state, optimizer.clip.init(raw), optimizer.update.init(raw), stability.start()
    )
    setup = Setup(config, mesh, None, TABLE, (), rep, optimizer)
    return jax.jit(functools.partial(train_step, setup))(start, tokens, Hypers(1e-2, 0.1))[0]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_state_advances_once_a_training_step_however_many_micro_batches(linear_model, accumulation):
    rep = reparameterize(TABLE, sigma_reparam())
    raw, state = rep.init(WEIGHTS)
    after = one_step(accumulation, np.arange(8 * 3).reshape(8, 3) % 9, raw, state)
    close(after.reparam, rep.effective(raw, state)[1])
    assert np.abs(after.reparam[0]["layers"]["up"]["u"] - state[0]["layers"]["up"]["u"]).max() > 1e-3
    assert after.step == 1 and np.abs(after.raw["head"]["gate"] - raw["head"]["gate"]) > 1e-3


def test_a_step_that_is_not_finite_advances_nothing(linear_model):
    rep = reparameterize(TABLE, sigma_reparam())
    raw, state = rep.init(WEIGHTS)
    raw["embed"] = raw["embed"].at[4, 0].set(jnp.inf)
    after = one_step(1, np.full((8, 3), 4), raw, state)
    jax.tree.map(np.testing.assert_array_equal, (after.raw, after.reparam), (raw, state))
    assert after.step == 0 and after.guard.halted
