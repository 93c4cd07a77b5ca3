"""WeSaR (Nishida et al. 2024): what is stored, what is used, and that a run starts where its backbone's does."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab.initialize import draw, he, scaled, small
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import unit
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.optimize import Hypers, OptimizerConfig, build
from jaxstab.reparam import identity, reparameterize, wesar
from jaxstab.table import count, rows

SIGMA = math.sqrt(4e-5)
MODEL = ModelConfig(width=32, layers=3, heads=4, vocabulary=40, max_length=12, remat="none")
TIED = dataclasses.replace(MODEL, tie_embeddings=True)
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 12)).astype(np.int32)


@jax.jit
def logits(weights):
    """Tying is a matter of what is stored: the model has no part in it."""
    return Transformer(MODEL).apply({"params": weights}, TOKENS)


def table_of(model, backbone=None):
    return scaled(read_table(model), backbone or he(), embedding=unit().multiplier)


def wrapped(table, *methods, seed=0):
    rep = reparameterize(table, *methods)
    return rep, *rep.init(draw(jax.random.key(seed), table))


def gates_of(rep, raw):
    return {
        row.path: gate for row, gate in zip(rows(rep.table), jax.tree.leaves(raw), strict=True) if row.role == "gate"
    }


@pytest.mark.parametrize(("model", "backbone"), [(MODEL, he()), (TIED, small())], ids=["he", "small and tied"])
def test_the_same_seed_starts_at_the_same_weights_and_logits(model, backbone):
    table = table_of(model, backbone)
    drawn = draw(jax.random.key(0), table)
    for methods in ([], [identity()], [wesar()], [wesar(sigma=0.5)], [wesar(trainable_gates=False)]):
        rep, raw, state = wrapped(table, *methods)
        weights = rep.merge(raw, state)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), weights, drawn)
        np.testing.assert_allclose(logits(weights), logits(drawn), rtol=1e-4, atol=1e-5)
    other, raw, state = wrapped(table, wesar(), seed=1)
    assert np.abs(logits(other.merge(raw, state)) - logits(drawn)).max() > 0.1


@pytest.mark.parametrize("sigma", [SIGMA, 0.02])
def test_every_stored_matrix_has_the_common_standard_deviation(sigma):
    rep, raw, _ = wrapped(table_of(MODEL), wesar(sigma=sigma))
    matrices = [(row, w) for row, w in zip(rows(rep.table), jax.tree.leaves(raw), strict=True) if row.is_matrix]
    assert len(matrices) == 8
    for row, weight in matrices:
        assert row.std == sigma and row.decay == 1
        np.testing.assert_allclose(np.std(weight, axis=(-2, -1)), sigma, rtol=0.1)


def test_gates_are_the_backbone_s_standard_deviation_over_sigma():
    rep, raw, _ = wrapped(table_of(MODEL), wesar())
    d, n = 32, 3
    expected = {
        "embed_tokens/embedding/gate": 1 / SIGMA,
        "layers/self_attn/o_proj/kernel/gate": 1 / math.sqrt(2 * n * d) / SIGMA,
        "layers/mlp/down_proj/kernel/gate": math.sqrt(2 / (8 * n * d)) / SIGMA,
    }
    gates = gates_of(rep, raw)
    assert len(gates) == 8 and gates["layers/mlp/up_proj/kernel/gate"].shape == (n,)
    for path, gate in gates.items():
        np.testing.assert_allclose(gate, expected.get(path, 1 / math.sqrt(d) / SIGMA), rtol=1e-6)
    for row in rows(rep.table):
        if row.role == "gate":
            np.testing.assert_allclose(gates[row.path], row.value, rtol=1e-6)
            assert row.decay == 0 and row.axes in ((), ("layers",))


def test_the_gradient_is_the_product_rule_s():
    table = table_of(MODEL)
    rep, raw, state = wrapped(table, wesar())
    effective_gradient = draw(jax.random.key(7), table)  # any cotangent will do
    _, pullback = jax.vjp(lambda raw: rep.merge(raw, state), raw)
    (gradient,) = pullback(effective_gradient)
    stored, cotangent = (
        raw["layers"]["mlp"]["up_proj"]["kernel"],
        effective_gradient["layers"]["mlp"]["up_proj"]["kernel"],
    )
    found = gradient["layers"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_allclose(found["weight"], stored["gate"][:, None, None] * cotangent, rtol=1e-6)
    by_layer = np.einsum("lio,lio->l", np.float64(stored["weight"]), np.float64(cotangent))
    np.testing.assert_allclose(found["gate"], by_layer, rtol=1e-4)
    np.testing.assert_array_equal(gradient["norm"]["scale"], effective_gradient["norm"]["scale"])


def test_fixed_gates_have_no_gradient_and_do_not_move():
    table = table_of(MODEL)
    rep, raw, state = wrapped(table, wesar(trainable_gates=False))
    optimizer = build(OptimizerConfig(warmup=0), rep.table, 10)

    @jax.jit
    def step(raw):
        gradient = jax.grad(lambda raw: jnp.sum(jnp.square(logits(rep.merge(raw, state)))))(raw)
        return optimizer.update.update(gradient, optimizer.update.init(raw), raw, hypers=Hypers(0.1, 0.1))[0]

    updates = step(raw)
    assert all(np.all(gate == 0) for gate in gates_of(rep, updates).values())
    assert np.all(np.asarray(updates["layers"]["mlp"]["up_proj"]["kernel"]["weight"]) != 0)


def trained(rep, raw, state, steps=3):
    """A few steps of Adam, after which the gates of every layer are their own."""
    optimizer = optax.adam(3e-2)

    @jax.jit
    def step(raw, moments):
        gradient = jax.grad(lambda raw: jnp.mean(jnp.square(logits(rep.merge(raw, state)) - 1)))(raw)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(raw, updates), moments

    moments = optimizer.init(raw)
    for _ in range(steps):
        raw, moments = step(raw, moments)
    return raw


@pytest.mark.parametrize("model", [MODEL, TIED], ids=["untied", "tied"])
def test_merged_weights_are_plain_and_keep_the_logits_after_training(model):
    rep, start, state = wrapped(table_of(model), wesar(sigma=0.1))
    raw = trained(rep, start, state)
    gates, before = gates_of(rep, raw), gates_of(rep, start)
    assert all(np.all(gates[path] != before[path]) for path in gates)
    assert np.ptp(gates["layers/mlp/up_proj/kernel/gate"]) > 1e-4
    merged = rep.merge(raw, state)
    assert jax.tree.structure(merged) == jax.tree.structure(read_table(model))

    def product(stored):
        weight, gate = np.float64(stored["weight"]), np.float64(stored["gate"])
        return weight * gate[..., None, None]

    head = raw["lm_head"]["kernel"]
    if model.tie_embeddings:
        head = head | {"weight": np.transpose(raw["embed_tokens"]["embedding"]["weight"])}
    by_hand = jax.tree.map(np.float64, merged)
    by_hand["embed_tokens"]["embedding"] = product(raw["embed_tokens"]["embedding"])
    by_hand["lm_head"]["kernel"] = product(head)
    by_hand["layers"] = jax.tree.map(
        lambda stored: product(stored) if isinstance(stored, dict) else np.float64(stored),
        raw["layers"],
        is_leaf=lambda node: isinstance(node, dict) and "gate" in node,
    )
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), merged, by_hand)
    exact = logits(jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), by_hand))
    np.testing.assert_allclose(logits(merged), exact, rtol=1e-4, atol=1e-4)


def test_tied_embeddings_are_one_stored_matrix_with_two_gates():
    table = table_of(TIED)
    d, vocabulary = 32, 40
    gates = 6 * 3 + 2
    assert count(reparameterize(table_of(MODEL)).table) - count(reparameterize(table).table) == d * vocabulary
    rep, raw, state = wrapped(table, wesar())
    assert count(rep.table) == count(reparameterize(table).table) + gates
    assert count(rep.table) == sum(leaf.size for leaf in jax.tree.leaves(raw))
    assert raw["lm_head"]["kernel"]["weight"] is None
    into, out = raw["embed_tokens"]["embedding"]["gate"], raw["lm_head"]["kernel"]["gate"]
    np.testing.assert_allclose([into, out], [1 / SIGMA, 1 / math.sqrt(d) / SIGMA], rtol=1e-6)
    weights = rep.merge(raw, state)
    assert np.std(weights["embed_tokens"]["embedding"]) == pytest.approx(1, rel=0.05)
    assert np.std(weights["lm_head"]["kernel"]) == pytest.approx(1 / math.sqrt(d), rel=0.05)

    cotangent = wrapped(table_of(MODEL), seed=5)[1]
    (gradient,) = jax.vjp(lambda raw: rep.merge(raw, state), raw)[1](cotangent)
    both = into * cotangent["embed_tokens"]["embedding"] + out * cotangent["lm_head"]["kernel"].T
    np.testing.assert_allclose(gradient["embed_tokens"]["embedding"]["weight"], both, rtol=1e-5, atol=1e-3)


def first_update(rep, state, eps):
    """raw -> the update of a stored matrix by the optimizer's first step, without decay."""
    config = OptimizerConfig(warmup=0)
    adam = dataclasses.replace(config.rule.adamw, eps=eps)
    config = dataclasses.replace(config, rule=dataclasses.replace(config.rule, adamw=adam))
    optimizer = build(config, rep.table, 10)

    @jax.jit
    def update(raw):
        gradient = jax.grad(lambda raw: jnp.mean(jnp.square(logits(rep.merge(raw, state)) - 1)))(raw)
        updates, _ = optimizer.update.update(gradient, optimizer.update.init(raw), raw, hypers=Hypers(1e-3, 0.0))
        return updates["layers"]["mlp"]["up_proj"]["kernel"]["weight"]

    return update


def test_adam_s_first_update_of_a_matrix_is_the_same_whatever_its_gate():
    """For (W, a) and (W / c, c a), which are the same model: the gradient by W grows by c, and Adam divides it out.

    Not so for the same W under another gate: another model, whose gradient isn't a multiple of the first one's.
    """
    rep, raw, state = wrapped(table_of(MODEL), wesar(sigma=0.1))
    factor = 8.0  # a power of two, so that the effective weights are bitwise the same

    def scaled_by(weight_factor, gate_factor):
        changed = jax.tree.map(lambda leaf: leaf, raw)
        kernel = changed["layers"]["mlp"]["up_proj"]["kernel"]
        changed["layers"]["mlp"]["up_proj"]["kernel"] = {
            "weight": kernel["weight"] * weight_factor,
            "gate": kernel["gate"] * gate_factor,
        }
        return changed

    update = first_update(rep, state, eps=1e-30)
    first = update(raw)
    np.testing.assert_allclose(np.abs(first), 1e-3, rtol=1e-4)  # Adam's first step is the gradient's sign
    np.testing.assert_allclose(update(scaled_by(1 / factor, factor)), first, rtol=1e-5)
    another_model = update(scaled_by(1, factor))
    assert 0.01 < np.mean(np.sign(another_model) != np.sign(first)) < 0.6
    # With an eps of the gradient's size the invariance is gone.
    update = first_update(rep, state, eps=1e-2)
    assert np.median(update(scaled_by(1 / factor, factor)) / update(raw)) > 1.5
