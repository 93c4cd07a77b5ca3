"""Norm placements, embedding treatments, QK-norm and soft-caps, each against its formula in float64 NumPy."""

import dataclasses
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, logsumexp

from jaxstab.config import from_config_dict, to_config_dict
from jaxstab.model.config import ModelConfig
from jaxstab.model.loss import chunked_loss
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.table import rows

SIZES = {"width": 16, "layers": 3, "heads": 4, "kv_heads": 2, "mlp_width": 24, "vocabulary": 19, "max_length": 10}
TOKENS = np.random.default_rng(0).integers(0, 19, (2, 10)).astype(np.int32)


def config_of(**changes):
    """A tiny model; `norm_placement="post"` chooses a section's method, and "deepnorm.exponent" an option of one."""
    values = to_config_dict(ModelConfig(**SIZES))
    for key, value in changes.items():
        if key in ("norm_placement", "embedding"):
            values[key].method = value
        elif "." in key:
            section, method, option = key.split(".")
            values[section][method][option] = value
        else:
            values[key] = value
    return from_config_dict(ModelConfig, values)


def random_weights(config):
    """Weights far from their initial values; a parameter has the same values in every model."""

    def leaf(row):
        noise = np.random.default_rng(zlib.crc32(row.path.encode())).normal(size=row.shape).astype(np.float32)
        return 1 + 0.3 * noise if row.role == "norm" else 0.4 * noise

    return jax.tree.map(leaf, read_table(config))


def rms(x, scale, eps=1e-5):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def turned(x_TK, theta=10000.0):
    half = x_TK.shape[1] // 2
    turn = np.exp(1j * np.outer(np.arange(len(x_TK)), theta ** (-np.arange(half) / half)))
    pairs = (x_TK[:, :half] + 1j * x_TK[:, half:]) * turn
    return np.concatenate([pairs.real, pairs.imag], -1)


def attention(x, weights, config):
    """Head by head, with QK-norm before the rotation and a cap on the logits."""
    q, k, v = (x @ weights[name]["kernel"] for name in ("q_proj", "k_proj", "v_proj"))
    out, largest = [], []
    for head in range(4):
        own, group = slice(4 * head, 4 * head + 4), head // 2
        shared = slice(4 * group, 4 * group + 4)
        queries, keys = q[:, own], k[:, shared]
        if config.qk_norm:
            queries, keys = rms(queries, weights["q_norm"]["scale"]), rms(keys, weights["k_norm"]["scale"])
        z = turned(queries) @ turned(keys).T / 2
        if config.attention_softcap:
            z = config.attention_softcap * np.tanh(z / config.attention_softcap)
        z = np.where(np.tril(np.ones_like(z, bool)), z, -np.inf)
        largest.append(z.max())
        p = np.exp(z - logsumexp(z, axis=-1, keepdims=True))
        out.append(p @ v[:, shared])
    return np.concatenate(out, -1) @ weights["o_proj"]["kernel"], largest


def mlp(x, weights):
    up = x @ weights["up_proj"]["kernel"]
    return (up * (1 + erf(up / math.sqrt(2))) / 2) @ weights["down_proj"]["kernel"]


def names(placement):
    """Norms before and after attention, before and after the MLP."""
    if placement in ("pre", "pre_scaled", "mix"):
        return "input_layernorm", None, "post_attention_layernorm", None
    return (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )


def joined(placement, x, f, before, after, layer, depth, exponent):
    """The papers' formulas, one a line."""
    return {
        "pre": lambda: x + f(before(x)),
        "post": lambda: after(x + f(x)),
        "deepnorm": lambda: after((2 * depth) ** exponent * x + f(x)),
        "peri": lambda: x + after(f(before(x))),
        "reordered": lambda: x + after(f(x)),
        "pre_scaled": lambda: x + f(before(x) / math.sqrt(layer)),
        "mix": lambda: before(x + f(x)) if layer <= 2 else x + f(before(x)),  # half of three blocks, rounded up
        "none": lambda: x + f(x),
    }[placement]()


def reference(weights, config):
    """Logits `[B, T, V]` and the largest attention logits `[L, H]`, a sequence and a layer at a time."""
    weights = jax.tree.map(lambda w: np.asarray(w, np.float64), weights)
    placement = config.norm_placement.method
    logits, largest = [], []
    for tokens in TOKENS:
        x = weights["embed_tokens"]["embedding"][tokens]
        if config.embedding.method == "layer_norm":
            x = rms(x, weights["embed_norm"]["scale"])
        seen = []
        for index in range(config.layers):
            layer = jax.tree.map(lambda w, index=index: w[index], weights["layers"])
            norms = [lambda x, name=name: rms(x, layer[name]["scale"]) for name in names(placement)]  # noqa: B023
            top = []

            def attend(x):
                out, found = attention(x, layer["self_attn"], config)  # noqa: B023
                top.extend(found)  # noqa: B023
                return out

            rest = index + 1, config.layers, config.norm_placement.deepnorm.exponent
            x = joined(placement, x, attend, norms[0], norms[1], *rest)
            x = joined(placement, x, lambda x: mlp(x, layer["mlp"]), norms[2], norms[3], *rest)  # noqa: B023
            seen.append(top)
        if placement not in ("post", "deepnorm", "none"):
            x = rms(x, weights["norm"]["scale"])
        z = x @ weights["lm_head"]["kernel"]
        logits.append(config.logits_softcap * np.tanh(z / config.logits_softcap) if config.logits_softcap else z)
        largest.append(seen)
    return np.stack(logits), np.max(largest, axis=0)


VARIANTS = {
    "post": {"norm_placement": "post"},
    "deepnorm": {"norm_placement": "deepnorm"},
    "deepnorm, GLM-130B": {"norm_placement": "deepnorm", "norm_placement.deepnorm.exponent": 0.5},
    "peri": {"norm_placement": "peri"},
    "reordered": {"norm_placement": "reordered"},
    "OLMo 2": {"norm_placement": "reordered", "qk_norm": True},
    "pre_scaled": {"norm_placement": "pre_scaled"},
    "mix": {"norm_placement": "mix", "norm_placement.mix.fraction": 0.5},
    "none": {"norm_placement": "none"},
    "embedding norm": {"embedding": "layer_norm"},
    "qk_norm": {"qk_norm": True},
    "attention softcap": {"attention_softcap": 0.7},
    "logits softcap": {"logits_softcap": 1.5},
    "Gemma 2": {"norm_placement": "peri", "attention_softcap": 2.0, "logits_softcap": 3.0},
}


@pytest.mark.parametrize("changes", [{}, *VARIANTS.values()], ids=["pre", *VARIANTS])
def test_logits_are_the_formula_s(changes):
    config = config_of(**changes)
    weights = random_weights(config)
    expected, _ = reference(weights, config)
    found = Transformer(config).apply({"params": weights}, TOKENS)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=3e-5)
    if changes:
        plain, _ = reference(random_weights(config_of()), config_of())
        assert np.abs(expected - plain).max() > 1e-2, "the variant computes the same: the comparison shows nothing"


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"attention_softcap": 0.7}], ids=str)
def test_largest_attention_logits_are_seen_per_layer_and_head(changes):
    config = config_of(**changes)
    weights = random_weights(config)
    _, expected = reference(weights, config)
    _, sown = Transformer(config, intermediates=("max_attention_logit",)).apply(
        {"params": weights}, TOKENS, mutable=["intermediates"]
    )
    (found,) = sown["intermediates"]["layers"]["self_attn"]["max_attention_logit"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_detach_shrinks_the_embedding_s_gradient_and_nothing_else():
    plain, detached = config_of(), config_of(embedding="detach")
    weights = random_weights(plain)

    def gradient(config):
        loss = lambda weights: jnp.sum(jnp.square(Transformer(config).apply({"params": weights}, TOKENS)))  # noqa: E731
        return jax.value_and_grad(loss)(weights)

    (value, whole), (same, shrunk) = gradient(plain), gradient(detached)
    np.testing.assert_allclose(value, same, rtol=1e-6)
    expected = {**whole, "embed_tokens": jax.tree.map(lambda g: 0.1 * g, whole["embed_tokens"])}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4 * np.abs(b).max()), shrunk, expected
    )


def test_the_loss_s_softcap_is_that_of_the_logits():
    config = config_of(logits_softcap=1.5)
    weights = random_weights(config)
    hidden = Transformer(config).apply({"params": weights}, TOKENS, method="hidden")
    mask = np.ones(TOKENS.shape, bool)
    loss, _ = chunked_loss(hidden, weights["lm_head"]["kernel"], TOKENS, mask, z_loss=0.0, chunk=4, softcap=1.5)
    logits, _ = reference(weights, config)
    expected = logsumexp(logits, axis=-1) - np.take_along_axis(logits, TOKENS[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)


def test_norms_that_a_placement_does_not_call_have_no_parameters():
    norms = {}
    for placement in ("pre", "post", "peri", "reordered", "none"):
        config = config_of(norm_placement=placement)
        norms[placement] = sum(row.role == "norm" for row in jax.tree.leaves(read_table(config)))
    assert norms == {"pre": 3, "post": 2, "peri": 5, "reordered": 3, "none": 0}


def test_depth_scaled_sandwich_begins_with_small_gains_after_its_branches():
    table = read_table(config_of(norm_placement="peri", **{"norm_placement.peri.exponent": 0.5}))
    gains = {row.path.split("/")[1]: row.value for row in rows(table) if row.role == "norm" and row.stacked}
    after = {"post_attention_layernorm", "post_feedforward_layernorm"}
    depth = rows(table)[0].depth
    assert gains == {name: depth**-0.5 if name in after else 1.0 for name in gains} and after < set(gains)


def test_model_configs_compare_and_hash_by_value():
    assert config_of(norm_placement="peri") == config_of(norm_placement="peri") != config_of()
    assert len({config_of(), config_of(), dataclasses.replace(config_of(), qk_norm=True)}) == 2
