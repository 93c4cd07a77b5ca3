"""TEV, update ratio, attention entropy and more on a trained Llama (stories260K) against NumPy in float64.

The reference reads the file's own arrays, [out, in] with rotary embedding over pairs, and shares nothing with us.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import stability
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.reparam import reparameterize, wesar
from jaxstab.train.probe import probe
from tests.stories import load, needs_stories

pytestmark = needs_stories


@pytest.fixture(scope="module")
def stories():
    config, weights, arrays, golden = load()
    tokens = np.array([golden["greedy_ids_float64"][:32], golden["greedy_ids_float64"][16:48]])
    return config, weights, {name: np.float64(array) for name, array in arrays.items()}, tokens


def rms_norm(x, gain):
    return gain * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def rotated(x, head):
    """Entries 2i and 2i+1 of each head as a complex number, turned by t / 10000^(2i/head) at position t."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    turn = np.exp(1j * np.arange(len(x))[:, None] / 10000 ** (np.arange(0, head, 2) / head))
    turned = pairs * turn[:, None, :]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def forward(config, arrays, tokens):
    """One sequence through the Llama; what is measured on the way, one row per layer."""
    head, length = config.head_dim, len(tokens)
    x = arrays["embed"][tokens]
    seen = {"shortcut_std/embedding": x, "attention": [], "mlp": [], "probabilities": [], "logits": [], "gates": []}
    seen["hidden"] = []
    for layer in range(config.layers):
        own = {name: array[layer] for name, array in arrays.items() if array.ndim and len(array) == config.layers}
        h = rms_norm(x, own["attention_norm"])
        q, k, v = ((h @ own[name].T).reshape(length, -1, head) for name in "qkv")
        q, k = rotated(q, head), rotated(k, head)
        k, v = (np.repeat(part, config.heads // config.kv_heads, axis=1) for part in (k, v))
        z = np.einsum("thk,shk->hts", q, k) / np.sqrt(head)
        z[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + np.einsum("hts,shk->thk", p, v).reshape(length, -1) @ own["o"].T
        seen["attention"].append(x)
        h = rms_norm(x, own["mlp_norm"])
        gate = h @ own["gate"].T
        hidden = gate / (1 + np.exp(-gate)) * (h @ own["up"].T)
        x = x + hidden @ own["down"].T
        for name, value in (("mlp", x), ("probabilities", p), ("logits", z), ("gates", gate), ("hidden", hidden)):
            seen[name].append(value)
    seen["max_logit"] = rms_norm(x, arrays["norm"]) @ arrays["embed"].T
    return {name: np.array(value) for name, value in seen.items()}


def test_what_the_probe_sees_is_what_float64_gives(stories):
    config, weights, arrays, tokens = stories
    found = jax.jit(lambda weights: probe(Transformer(config), weights, tokens, iterations=1))(weights)
    one, other = (forward(config, arrays, row) for row in tokens)
    seen = {name: np.stack([one[name], other[name]]) for name in one}
    p = seen["probabilities"]
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1)), -1).mean((0, 3))
    largest = seen["logits"].max((0, 3, 4))
    assert entropy.shape == (config.layers, config.heads) and entropy.std() > 0.1
    for head in range(config.heads):
        np.testing.assert_allclose(found[f"stability/attention_entropy/{head}"], entropy[:, head], rtol=1e-4)
        np.testing.assert_allclose(found[f"stability/max_attention_logit/{head}"], largest[:, head], rtol=1e-4)
    for branch in ("attention", "mlp"):
        expected = seen[branch].std((0, 2, 3))
        np.testing.assert_allclose(found[f"stability/shortcut_std/{branch}"], expected, rtol=1e-4)
    expected = seen["shortcut_std/embedding"].std()
    np.testing.assert_allclose(found["stability/shortcut_std/embedding"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["stability/dead_units"], (seen["gates"].max((0, 2)) <= 0).mean(-1), rtol=1e-6)
    np.testing.assert_allclose(found["stability/max_activation"], np.abs(seen["hidden"]).max((0, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(found["stability/max_logit"], seen["max_logit"].max(), rtol=1e-4)


def test_tev_of_the_trained_embedding(stories):
    config, weights, arrays, _ = stories
    spread = np.sqrt(((arrays["embed"] - arrays["embed"].mean(1, keepdims=True)) ** 2).mean(1))
    for role, variability in stability.token_variabilities(read_table(config), weights).items():
        mean, std = stability.tev(variability)
        np.testing.assert_allclose([mean, std], [spread.mean(), spread.std()], rtol=1e-5, err_msg=role)
        counts, edges = stability.tev_histogram(variability, bins=8)
        np.testing.assert_allclose(edges, np.linspace(spread.min(), spread.max(), 9), rtol=1e-5)
        assert counts.sum() == config.vocabulary
        np.testing.assert_allclose(counts, np.histogram(spread, edges)[0], atol=1)  # one may lie on an edge


def test_update_ratios_of_the_trained_model_stored_and_effective_under_wesar(stories):
    config, weights, arrays, tokens = stories
    model = Transformer(dataclasses.replace(config, tie_embeddings=True))
    table = read_table(model.config)
    rep = reparameterize(table, wesar())
    raw, state = rep.init(weights)

    def loss(raw):
        logits = model.apply({"params": rep.merge(raw, state)}, tokens[:, :-1])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1))

    @jax.jit
    def step(raw):
        gradients = jax.grad(loss)(raw)
        updates = jax.tree.map(lambda g: -1e-2 * jnp.sign(g), gradients)
        given = {"raw": raw, "weights": weights, "raw_gradients": gradients, "gradients": weights, "updates": updates}
        new = rep.merge(jax.tree.map(jnp.add, raw, updates), state)
        given |= {"clipped_raw_gradients": gradients, "new_weights": new, "eps": 1e-8}
        return stability.step_statistics(table, rep.table, **given), gradients

    found, gradients = step(raw)
    sigma = np.sqrt(4e-5)
    places = {"q_proj": ("self_attn", "q"), "down_proj": ("mlp", "down"), "gate_proj": ("mlp", "gate")}
    for role, (module, name) in places.items():
        signs = {part: np.sign(np.float64(g)) for part, g in gradients["layers"][module][role]["kernel"].items()}
        trained = np.swapaxes(np.float64(weights["layers"][module][role]["kernel"]), 1, 2)
        np.testing.assert_allclose(
            np.linalg.norm(trained, axis=(1, 2)), np.linalg.norm(arrays[name], axis=(1, 2)), rtol=1e-5
        )
        gate = np.sqrt((trained**2).mean((1, 2))) / sigma
        stored = trained / gate[:, None, None]
        moved = -1e-2 * np.swapaxes(signs["weight"], 1, 2)
        expected = np.linalg.norm(moved, axis=(1, 2)) / np.linalg.norm(stored, axis=(1, 2))
        np.testing.assert_allclose(found[f"stability/update_ratio/{role}"], expected, rtol=1e-4)
        moved_effective = (gate - 1e-2 * signs["gate"])[:, None, None] * (stored + moved) - trained
        expected = np.linalg.norm(moved_effective, axis=(1, 2)) / np.linalg.norm(trained, axis=(1, 2))
        np.testing.assert_allclose(found[f"stability/update_ratio_effective/{role}"], expected, rtol=1e-4)
