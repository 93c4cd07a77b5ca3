"""The model against the papers' equations in float64 NumPy, and what its keys promise."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import Block, Transformer, read_table, rotary_tables

BASE = ModelConfig(width=16, layers=2, heads=4, mlp_width=24, vocabulary=19, max_length=10)
TOKENS = np.random.default_rng(0).integers(0, BASE.vocabulary, (2, 10)).astype(np.int32)
SEGMENTS = np.array([[0] * 10, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]], np.int32)

# Every key that changes what is computed, alone and in the combinations of well-known models.
VARIANTS = {
    "layernorm": {"norm": "layernorm"},
    "dyt": {"norm": "dyt"},
    "derf": {"norm": "derf"},
    "norm_eps": {"norm_eps": 0.1},
    "learned": {"positions": "learned"},
    "rope_theta": {"rope_theta": 100.0},
    "gelu_tanh": {"mlp": "gelu_tanh"},
    "relu": {"mlp": "relu"},
    "swiglu": {"mlp": "swiglu"},
    "bias": {"bias": True},
    "heads": {"heads": 2},
    "grouped": {"kv_heads": 2},
    "mlp_width": {"mlp_width": 0},
    "depth": {"layers": 3},
    "gpt2": {"norm": "layernorm", "positions": "learned", "mlp": "gelu_tanh", "bias": True},
    "mlp_clamp": {"mlp": "swiglu", "mlp_clamp": 0.7},
    "gate of heads": {"attention_gate": "head"},
    "gate of elements": {"attention_gate": "element", "kv_heads": 2},
    "sinks": {"attention_sink": True},
    "sinks, grouped": {"attention_sink": True, "kv_heads": 2, "attention_gate": "head"},
    "llama": {"mlp": "swiglu", "kv_heads": 1, "rope_theta": 500.0},
}


def random_weights(config):
    """Weights far from their initial values, norms and biases too; a parameter has the same values in every model."""

    def leaf(row):
        noise = np.random.default_rng(zlib.crc32(row.path.encode())).normal(size=row.shape).astype(np.float32)
        if row.role == "norm":
            return 1 + 0.3 * noise
        return noise if row.role.startswith("embed") else 0.4 * noise

    return jax.tree.map(leaf, read_table(config))


def normalise(x, weights, config):
    if config.norm in ("dyt", "derf"):
        squash, shift = {"dyt": (np.tanh, 0.0), "derf": (erf, weights.get("shift"))}[config.norm]
        return weights["scale"] * squash(weights["alpha"] * x + shift) + weights["bias"]
    if config.norm == "rmsnorm":
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * weights["scale"]
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps) * weights["scale"] + weights.get("bias", 0)


def linear(x, weights):
    return x @ weights["kernel"] + weights.get("bias", 0)


def rotated(x, theta):
    """Each pair (x_i, x_{i + K/2}) is a complex number, turned by t * theta^(-2i/K) at position t (Su et al. 2021)."""
    length, size = x.shape
    turn = np.exp(1j * np.outer(np.arange(length), theta ** (-2 * np.arange(size // 2) / size)))
    pairs = (x[:, : size // 2] + 1j * x[:, size // 2 :]) * turn
    return np.concatenate([pairs.real, pairs.imag], -1)


def attention(x, weights, config, segments):
    """One sequence, head by head; query head h reads key-value head h // (H / G) (Ainslie et al. 2023)."""
    size, length = config.width // config.heads, len(x)
    allowed = np.tril(np.ones((length, length), bool)) & (segments[:, None] == segments)
    q, k, v = (linear(x, weights[name]) for name in ("q_proj", "k_proj", "v_proj"))
    out = []
    for head in range(config.heads):
        group = head // (config.heads // (config.kv_heads or config.heads))
        own, shared = slice(head * size, (head + 1) * size), slice(group * size, (group + 1) * size)
        queries, keys = q[:, own], k[:, shared]
        if config.positions == "rotary":
            queries, keys = rotated(queries, config.rope_theta), rotated(keys, config.rope_theta)
        scores = np.where(allowed, queries @ keys.T / np.sqrt(size), -np.inf)
        sink = np.full((length, 1), weights["sinks"][head] if config.attention_sink else -np.inf)
        scores = np.concatenate([scores, sink], -1)  # its probability goes nowhere
        exponentials = np.exp(scores - scores.max(-1, keepdims=True))
        out.append((exponentials / exponentials.sum(-1, keepdims=True))[:, :-1] @ v[:, shared])
    out = np.concatenate(out, -1)
    if config.attention_gate != "none":
        gate = 1 / (1 + np.exp(-linear(x, weights["g_proj"])))
        out = out * (np.repeat(gate, size, axis=-1) if config.attention_gate == "head" else gate)
    return linear(out, weights["o_proj"])


def feed_forward(x, weights, config):
    up = linear(x, weights["up_proj"])
    if config.mlp == "swiglu":
        gate = linear(x, weights["gate_proj"])
        if config.mlp_clamp:
            gate, up = (np.clip(each, -config.mlp_clamp, config.mlp_clamp) for each in (gate, up))
        return linear(gate / (1 + np.exp(-gate)) * up, weights["down_proj"])
    activations = {
        "gelu": lambda u: u * (1 + erf(u / np.sqrt(2))) / 2,
        "gelu_tanh": lambda u: u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))) / 2,
        "relu": lambda u: np.maximum(u, 0),
    }
    return linear(activations[config.mlp](up), weights["down_proj"])


def reference_logits(weights, config, tokens_BT, segments_BT=None):
    """Pre-LN decoder in float64, a sequence and a layer at a time."""
    weights = jax.tree.map(lambda w: np.asarray(w, np.float64), weights)
    logits = []
    for row, tokens in enumerate(tokens_BT):
        segments = np.zeros(len(tokens)) if segments_BT is None else segments_BT[row]
        x = weights["embed_tokens"]["embedding"][tokens]
        if config.positions == "learned":
            x = x + weights["embed_positions"]["embedding"][: len(tokens)]
        for index in range(config.layers):
            layer = jax.tree.map(lambda w, index=index: w[index], weights["layers"])
            normed = normalise(x, layer["input_layernorm"], config)
            x = x + attention(normed, layer["self_attn"], config, segments)
            x = x + feed_forward(normalise(x, layer["post_attention_layernorm"], config), layer["mlp"], config)
        logits.append(normalise(x, weights["norm"], config) @ weights["lm_head"]["kernel"])
    return np.stack(logits)


def logits_of(config, segments=None, weights=None):
    weights = random_weights(config) if weights is None else weights
    return np.asarray(Transformer(config).apply({"params": weights}, TOKENS, segments))


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["across documents", "masked"])
def test_the_paper_s_architecture_is_the_reference(segments):
    expected = reference_logits(random_weights(BASE), BASE, TOKENS, segments)
    np.testing.assert_allclose(logits_of(BASE, segments), expected, rtol=1e-4, atol=1e-5)


def test_masking_documents_changes_the_documents_after_the_first():
    difference = np.abs(logits_of(BASE) - logits_of(BASE, SEGMENTS)).max(-1)
    assert (difference[0] < 1e-5).all() and (difference[1, :3] < 1e-5).all()
    assert (difference[1, 3:] > 1e-2).all()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_key_is_the_reference_s_and_changes_the_logits(changes):
    config = dataclasses.replace(BASE, **changes)
    weights = random_weights(config)
    expected = reference_logits(weights, config, TOKENS)
    np.testing.assert_allclose(logits_of(config, weights=weights), expected, rtol=1e-4, atol=2e-5)
    base = reference_logits(random_weights(BASE), BASE, TOKENS)
    assert np.abs(expected - base).max() > 3e-4, "the variant computes the same: the comparison shows nothing"


def test_branches_of_one_layer_can_be_applied_alone():
    weights = random_weights(BASE)
    block, rotary = Block(BASE), rotary_tables(TOKENS.shape[1], BASE.head_dim, BASE.rope_theta)
    x = weights["embed_tokens"]["embedding"][TOKENS]
    for index in range(BASE.layers):
        layer = {"params": jax.tree.map(lambda w, index=index: w[index], weights["layers"])}
        x = block.apply(layer, x, jnp.float32(index + 1), rotary, None, method="attention_branch")
        x = block.apply(layer, x, jnp.float32(index + 1), method="mlp_branch")
    hidden = Transformer(BASE).apply({"params": weights}, TOKENS, method="hidden")
    rms = np.sqrt((np.asarray(x) ** 2).mean(-1, keepdims=True) + BASE.norm_eps)
    np.testing.assert_allclose(hidden, x / rms * weights["norm"]["scale"], rtol=1e-4, atol=1e-5)


def summed_square(config):
    return lambda weights: jnp.sum(jnp.square(Transformer(config).apply({"params": weights}, TOKENS, method="hidden")))


def equations(jaxpr):
    """All equations of a jaxpr, those of its inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                yield from equations(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rematerialisation_recomputes_and_gives_the_same_gradient(dtype):
    base = dataclasses.replace(BASE, dtype=dtype)
    weights = random_weights(base)
    gradients, products = {}, {}
    for remat in ("none", "dots", "full"):
        gradient = jax.jit(jax.grad(summed_square(dataclasses.replace(base, remat=remat))))
        gradients[remat] = gradient(weights)
        traced = equations(jax.make_jaxpr(gradient)(weights).jaxpr)
        products[remat] = sum(equation.primitive.name == "dot_general" for equation in traced)
    assert products["none"] <= products["dots"] < products["full"]
    rtol = {"float32": 1e-4, "bfloat16": 0.05}[dtype]
    for remat in ("dots", "full"):
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max()),
            gradients[remat],
            gradients["none"],
        )


HALF = dataclasses.replace(BASE, dtype="bfloat16", remat="none")


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm", "derf"])
def test_bfloat16_stays_near_float32(norm):
    config = dataclasses.replace(HALF, norm=norm)
    found = logits_of(config)
    expected = reference_logits(random_weights(config), config, TOKENS)
    assert found.dtype == np.float32
    assert 1e-4 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.02


def test_logits_are_float32_and_not_rounded_to_the_compute_dtype():
    found = logits_of(HALF)
    assert (found != found.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.9


def test_in_bfloat16_only_products_leave_float32():
    weights = random_weights(HALF)
    gradient = jax.grad(lambda weights: summed_square(HALF)(weights).astype(jnp.float32))
    found = list(equations(jax.make_jaxpr(gradient)(weights).jaxpr))

    def dtypes(*primitives):
        return {e.invars[0].aval.dtype.name for e in found if e.primitive.name in primitives}

    # exp is the softmax's, rsqrt the norms', erf the exact GELU's
    assert dtypes("exp") == dtypes("rsqrt") == dtypes("erf") == {"float32"}
    assert "bfloat16" in dtypes("dot_general")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(gradient, weights))} == {"float32"}
    hidden = jax.eval_shape(lambda w: Transformer(HALF).apply({"params": w}, TOKENS, method="hidden"), weights)
    assert hidden.dtype == jnp.bfloat16


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_norms_stand_a_large_offset(norm):
    """Activations with a mean far above their spread, as outlier features have."""
    config = dataclasses.replace(BASE, norm=norm, layers=1)
    weights = random_weights(config)
    embedding = weights["embed_tokens"]["embedding"]
    weights["embed_tokens"]["embedding"] = embedding = embedding + np.float32(300)
    weights["layers"] = jax.tree.map(lambda w: w * np.float32(1e-6), weights["layers"])  # leaves the final norm alone
    expected = reference_logits(weights, config, TOKENS)
    np.testing.assert_allclose(logits_of(config, weights=weights), expected, rtol=1e-3, atol=1e-3)


def test_bfloat16_gradients_of_frequent_tokens_and_biases_are_float32_sums():
    """A token that is there thousands of times: adding up its gradients in bfloat16 stops at a few hundred."""
    tokens = np.random.default_rng(1).integers(0, 2, (256, 10)).astype(np.int32)
    gradients = {}
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(BASE, layers=1, bias=True, positions="learned", dtype=dtype, remat="none")

        def loss(weights, config=config):
            hidden = Transformer(config).apply({"params": weights}, tokens, method="hidden")
            return jnp.sum(hidden.astype(jnp.float32) * jnp.arange(16))

        gradients[dtype] = jax.jit(jax.grad(loss))(random_weights(config))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients["float32"]["layers"]))

    def error(half, full):
        return np.linalg.norm(half - full) / (np.linalg.norm(full) + 1e-2 * largest)

    errors = jax.tree_util.tree_leaves_with_path(jax.tree.map(error, gradients["bfloat16"], gradients["float32"]))
    # How a product of matrices is accumulated is the backend's: XLA's for CPUs has been worse than 5%.
    sums = {jax.tree_util.keystr(path): value for path, value in errors if "kernel" not in jax.tree_util.keystr(path)}
    assert len(sums) > 6 and {path: f"{value:.0%}" for path, value in sums.items() if value > 0.05} == {}
