"""weight_norm against NumPy in float64, written from the paper's equations, and against Flax's WeightNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxstab.initialize import draw as draw_weights
from jaxstab.initialize import scaled, small
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.reparam import linen_moments, reparameterize, weight_norm
from jaxstab.reparam.weight_norm import calibrate
from jaxstab.table import Row, read

TABLE = {
    "up": Row("up", "up_proj", (3, 4, 6), (None,) * 3, True, std=0.5),
    "head": Row("head", "lm_head", (4, 9), (None,) * 2, False, std=0.5),
    "embed": Row("embed", "embed_tokens", (9, 4), (None,) * 2, False, std=1.0, multiplier=2.0),
}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=row.shape) * row.std for name, row in TABLE.items()}


def by_hand(weight, gate, cotangent, axis):
    """Salimans and Kingma 2016, equations 2 and 3: w, ∇g, ∇v."""
    norm = np.linalg.norm(weight, axis=axis, keepdims=True)
    gate = np.expand_dims(gate, axis)
    gate_gradient = np.sum(cotangent * weight, axis=axis, keepdims=True) / norm
    weight_gradient = gate / norm * cotangent - gate * gate_gradient / norm**2 * weight
    return gate * weight / norm, gate_gradient.squeeze(axis), weight_gradient


@pytest.mark.parametrize(("embedding", "axis"), [("token", -1), ("feature", -2)])
def test_value_and_gradient_are_the_papers(embedding, axis):
    with jax.enable_x64(True):
        rep = reparameterize(TABLE, weight_norm(sigma=0.1, embedding=embedding))
        raw, state = rep.init(jax.tree.map(jnp.asarray, draw(0)))
        rng = np.random.default_rng(1)
        raw = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), raw)
        weights, pullback = jax.vjp(lambda raw: rep.effective(raw, state)[0], raw)
        cotangents = draw(2)
        (gradients,) = pullback(jax.tree.map(jnp.asarray, cotangents))
    for name, row in TABLE.items():
        summed = axis if name == "embed" else -2
        constant = row.multiplier
        stored = jax.tree.map(np.asarray, raw[name])
        weight, gate, gradient = by_hand(stored["weight"], stored["gate"], constant * cotangents[name], summed)
        np.testing.assert_allclose(weights[name], constant * weight, rtol=1e-9)
        np.testing.assert_allclose(gradients[name]["gate"], gate, rtol=1e-9)
        np.testing.assert_allclose(gradients[name]["weight"], gradient, rtol=1e-8, atol=1e-12)


def test_value_and_gradient_are_flaxs():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(5, 4)), jnp.float32)
    module = nn.WeightNorm(nn.Dense(6, use_bias=False))
    layers = [module.init(jax.random.key(layer), x)["params"] for layer in range(3)]
    dense, scale = "layer_instance", "layer_instance/kernel/scale"
    rng = np.random.default_rng(4)
    for layer in layers:
        layer[scale] = jnp.asarray(rng.normal(size=6), jnp.float32)

    rep = reparameterize({"up": TABLE["up"]}, weight_norm())
    raw = {
        "up": {
            "weight": jnp.stack([layer[dense]["kernel"] for layer in layers]),
            "gate": jnp.stack([layer[scale] for layer in layers]),
        }
    }
    _, state = rep.init({"up": jnp.ones((3, 4, 6))})

    def loss(raw):
        return jnp.sum(jnp.sin(x @ rep.effective(raw, state)[0]["up"]))

    value, gradient = jax.value_and_grad(loss)(raw)
    flax = [jax.value_and_grad(lambda p: jnp.sum(jnp.sin(module.apply({"params": p}, x))))(layer) for layer in layers]
    np.testing.assert_allclose(value, sum(each for each, _ in flax), rtol=1e-5)
    for number, (_, expected) in enumerate(flax):
        found = jax.tree.map(lambda x, number=number: x[number], gradient["up"])
        np.testing.assert_allclose(found["weight"], expected[dense]["kernel"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["gate"], expected[scale], rtol=1e-4, atol=1e-6)


def test_rows_have_the_norm_of_their_gate_after_updates():
    rep = reparameterize(TABLE, weight_norm(embedding="token"))
    raw, state = rep.init(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), draw(5)))
    rng = np.random.default_rng(6)
    for _ in range(3):
        raw = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.05, x.dtype), raw)
        weights, state = rep.effective(raw, state)
    np.testing.assert_allclose(np.linalg.norm(weights["up"], axis=1), np.abs(raw["up"]["gate"]), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(weights["embed"], axis=1), 2 * np.abs(raw["embed"]["gate"]), rtol=1e-5)


def test_gates_start_at_the_norm_or_a_constant_and_the_stored_std_is_sigma():
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), draw(7))
    raw, state = reparameterize(TABLE, weight_norm(sigma=0.03)).init(weights)
    np.testing.assert_allclose(raw["up"]["gate"], np.linalg.norm(weights["up"], axis=1), rtol=1e-6)
    np.testing.assert_allclose(raw["up"]["weight"], 0.03 / 0.5 * weights["up"], rtol=1e-6)
    np.testing.assert_allclose(raw["embed"]["weight"], 0.03 * weights["embed"], rtol=1e-6)
    rep = reparameterize(TABLE, weight_norm(gate="constant", constant=1.5))
    raw, state = rep.init(weights)
    np.testing.assert_allclose(np.linalg.norm(rep.merge(raw, state)["up"], axis=1), 1.5, rtol=1e-5)


def test_a_row_of_zeros_has_a_finite_gradient():
    rep = reparameterize({"head": TABLE["head"]}, weight_norm(gate="constant"))
    raw, state = rep.init({"head": jnp.ones((4, 9)).at[:, 0].set(0)})
    gradient = jax.grad(lambda raw: jnp.sum(rep.effective(raw, state)[0]["head"]))(raw)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="second")(nn.tanh(nn.Dense(6, name="first")(x)))


def test_calibration_is_the_papers_sequential_one():
    """Section 3: t = v·x/‖v‖ layer after layer, g = 1/σ[t], b = -μ[t]/σ[t], and y = f((t - μ[t])/σ[t]) goes on."""
    x = np.random.default_rng(8).normal(size=(64, 4)).astype(np.float32) * 3 + 1
    model = TwoLayers()
    weights = model.init(jax.random.key(0), x)["params"]
    table = read(weights, {"first/kernel": "up_proj", "second/kernel": "lm_head", "bias": "bias"})
    rep = reparameterize(table, weight_norm(gate="data"))
    raw, state = rep.init(weights)
    raw = calibrate(rep, raw, state, lambda weights: linen_moments(model, weights, x))
    y = x
    for name, activation in (("first", np.tanh), ("second", lambda t: t)):
        kernel = np.asarray(weights[name]["kernel"])
        t = y @ (kernel / np.linalg.norm(kernel, axis=0))
        np.testing.assert_allclose(raw[name]["kernel"]["gate"], 1 / t.std(0), rtol=1e-4)
        np.testing.assert_allclose(raw[name]["bias"], -t.mean(0) / t.std(0), rtol=1e-4, atol=1e-5)
        y = activation((t - t.mean(0)) / t.std(0))


def test_calibration_gives_every_unit_of_the_transformer_unit_variance():
    config = ModelConfig(width=16, layers=3, heads=2, vocabulary=31, max_length=16, bias=True, remat="none")
    tokens = jax.random.randint(jax.random.key(0), (8, 16), 0, 31)
    model, table = Transformer(config), read_table(config)
    rep = reparameterize(table, weight_norm(gate="data", embedding="feature"))
    raw, state = rep.init(draw_weights(jax.random.key(1), scaled(table, small())))
    raw = calibrate(rep, raw, state, lambda weights: linen_moments(model, weights, tokens))
    logits = model.apply({"params": rep.merge(raw, state)}, tokens)
    np.testing.assert_allclose(np.std(logits, axis=(0, 1)), 1, rtol=1e-3)
    weights = rep.merge(raw, state)
    _, sown = model.apply({"params": weights}, tokens, capture_intermediates=True, mutable=["intermediates"])
    outputs = flatten_dict(sown["intermediates"], sep="/")
    for name in ("self_attn/q_proj", "self_attn/o_proj", "mlp/up_proj", "mlp/down_proj"):
        np.testing.assert_allclose(np.std(outputs[f"layers/{name}/__call__"][0], axis=(1, 2)), 1, rtol=1e-3)
        np.testing.assert_allclose(np.mean(outputs[f"layers/{name}/__call__"][0], axis=(1, 2)), 0, atol=1e-3)
