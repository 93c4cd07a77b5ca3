"""What holds for every method and chain: which ones go together, what they keep, and what they store."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.config import ConfigError, from_config_dict
from jaxstab.initialize import draw, he, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.reparam import METHODS, ReparamConfig, compose, reparameterize
from jaxstab.table import rows
from jaxstab.train.config import default_config, resolve
from jaxstab.train.describe import describe, total

CHAINS = [
    *METHODS,
    "mlra+wesar",
    "mlra+weight_norm",
    "mlra+sigma_reparam",
    "rezero+mlra",
    "residual_scaling+mlra",
    "residual_scaling+weight_norm",
    "residual_scaling+sigma_reparam",
    "residual_scaling+mlra+weight_norm",
]
TOKENS = jax.random.randint(jax.random.key(5), (2, 8), 0, 13)


def chain(method, **options):
    return compose(from_config_dict(ReparamConfig, {"method": method, **options}), METHODS)


def tables(**changes):
    config = ModelConfig(width=8, layers=3, heads=2, vocabulary=13, max_length=8, bias=True, remat="none", **changes)
    return Transformer(config), scaled(read_table(config), he(), embedding=lambda std, width: 1 / std)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("wesar+weight_norm", "both put a gate on the stored matrices; keep one"),
        ("sigma_reparam+weight_norm", "both put a gate on the stored matrices; keep one"),
        ("rezero+wesar", "both put a gate on o_proj and down_proj; keep one"),
        ("rezero+fixup", "both put a gate on the residual branches; keep one"),
        ("residual_scaling+rezero", "rezero's gate takes the place of residual_scaling's constant"),
        ("residual_scaling+wesar", "wesar's gate takes the place of residual_scaling's constant"),
        ("wesar+mlra", r"the first is nearest to the model; write mlra\+wesar"),
        ("identity+wesar", "identity stores matrices as they are; leave it out"),
        ("wesar+wesar", "has wesar twice"),
        ("wesar+vesar", "is not one of: identity, wesar, .* joined by"),
        ("", "is not one of"),
        ("wesar+", "is not one of"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(method, reason):
    values = default_config()
    values.reparam.method = method
    with pytest.raises(ConfigError, match=reason) as caught:
        resolve(values)
    assert "\n" not in str(caught.value)
    if method:
        assert method in str(caught.value)


def test_two_constants_on_the_branches_are_refused():
    values = default_config()
    values.reparam.method, values.init.method = "residual_scaling", "complete_p"
    with pytest.raises(ConfigError, match="both put a constant on the residual branches"):
        resolve(values)


def ramp(vector):
    """No two entries of which are alike."""
    return jnp.linspace(0.1, 0.2, vector.size).reshape(vector.shape)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", CHAINS)
def test_the_same_seed_gives_the_same_weights_under_every_method_that_keeps_them(method, tied):
    model, table = tables(tie_embeddings=tied)
    weights = jax.tree.map(lambda row, w: w if row.is_matrix else w + ramp(w), table, draw(jax.random.key(0), table))
    methods = chain(method)
    rep = reparameterize(table, *methods)
    raw, state = rep.init(weights)
    assert jax.tree.structure(raw) == jax.tree.structure(rep.table)
    assert [x.shape for x in jax.tree.leaves(raw)] == [row.shape for row in rows(rep.table)]
    merged = rep.merge(raw, state)
    kept = True
    for row, before, after in zip(rows(table), jax.tree.leaves(weights), jax.tree.leaves(merged), strict=True):
        if all(each.preserves for each in methods if each.applies(row)):
            np.testing.assert_allclose(after, before, rtol=2e-5, atol=1e-6, err_msg=row.path)
        else:
            kept = kept and np.allclose(after, before)
    assert kept == all(each.preserves for each in methods)
    if kept:
        logits, expected = (model.apply({"params": tree}, TOKENS) for tree in (merged, weights))
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", CHAINS)
def test_merge_keeps_the_logits_after_updates(method):
    model, table = tables()
    rep = reparameterize(table, *chain(method))
    raw, state = rep.init(draw(jax.random.key(0), table))
    step = jax.jit(lambda raw, state: rep.effective(raw, state))
    for seed in range(3):
        noise = np.random.default_rng(seed)
        raw = jax.tree.map(lambda x, noise=noise: x + 0.01 * jnp.asarray(noise.normal(size=x.shape), x.dtype), raw)
        weights, advanced = step(raw, state)
        merged = rep.merge(raw, state)
        logits, expected = (model.apply({"params": tree}, TOKENS) for tree in (merged, weights))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        state = advanced


def test_only_stateful_methods_have_state_and_it_is_float32():
    _, table = tables()
    for method in METHODS:
        rep = reparameterize(table, *chain(method))
        _, state = jax.eval_shape(rep.init, draw(jax.random.key(0), table))
        leaves = jax.tree.leaves(state)
        assert bool(leaves) == (method == "sigma_reparam")
        assert all(leaf.dtype == jnp.float32 for leaf in leaves)


D, N, V, F = 2048, 24, 32000, 8192
BLOCKS, EMBEDDINGS, NORMS = N * (4 * D * D + 2 * D * F), 2 * V * D, (2 * N + 1) * D
PLAIN = BLOCKS + EMBEDDINGS + NORMS
UNITS = N * (5 * D + F)  # q, k, v, o, down and up


@pytest.mark.parametrize(
    ("method", "options", "parameters", "millions"),
    [
        ("identity", {}, PLAIN, 1339.1),
        ("residual_scaling", {}, PLAIN, 1339.1),
        ("rezero", {}, PLAIN + 2 * N, 1339.1),
        ("fixup", {}, PLAIN + 2 * N, 1339.1),
        ("wesar", {}, PLAIN + 6 * N + 2, 1339.1),
        ("sigma_reparam", {}, PLAIN + 6 * N + 2, 1339.1),
        ("weight_norm", {}, PLAIN + UNITS + 2 * V, 1339.6),
        ("weight_norm", {"embedding": "feature"}, PLAIN + UNITS + V + D, 1339.6),
        ("mlra", {}, PLAIN, 1339.1),
        ("mlra", {"rank": 256}, PLAIN - N * 3 * (D * D - 2 * D * 256), 1112.6),
        ("mlra", {"control": True}, PLAIN, 1339.1),
        ("mlra+wesar", {}, PLAIN + 9 * N + 2, 1339.1),
        ("mlra+weight_norm", {}, PLAIN + UNITS + 3 * N * D // 2 + 2 * V, 1339.7),
    ],
)
def test_parameters_of_the_1_3b_model_are_exact(method, options, parameters, millions):
    values = default_config()
    values.model.update({"width": D, "layers": N, "heads": 16, "vocabulary": V})
    values.model.embedding.method = "unit"
    values.reparam.method = method
    for key, value in options.items():
        values.reparam[method][key] = value
    config = resolve(values)
    assert total(config) == parameters
    assert round(parameters / 1e6, 1) == millions
    shapes = [math.prod(map(int, row[2].split("x"))) if row[2] != "scalar" else 1 for row in describe(config)]
    assert sum(shapes) == parameters


def test_every_reading_of_row_rounds_to_the_papers_weight_normalization():
    """Nishida et al. 2024, Table 6: 1,339.6M, where Small has 1,339.1M."""
    input_units = N * (5 * D + F)  # q, k, v, o and up have d inputs, down has 4d
    for extra in (UNITS, input_units, UNITS + V, UNITS + D + V, UNITS + 2 * V):
        assert round((PLAIN + extra) / 1e6, 1) == 1339.6


def test_gates_have_their_shapes_by_role():
    values = default_config()
    values.model.update({"width": D, "layers": N, "heads": 16, "vocabulary": V})
    shapes = {}
    for method in ("wesar", "weight_norm", "sigma_reparam", "rezero"):
        values.reparam.method = method
        found = {row[0].split("/")[-3]: row[2] for row in describe(resolve(values)) if row[0].endswith("/gate")}
        shapes[method] = found
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
    scalars = dict.fromkeys(linear, "24") | {"embed_tokens": "scalar", "lm_head": "scalar"}
    assert shapes["wesar"] == shapes["sigma_reparam"] == scalars
    vectors = dict.fromkeys(linear, "24x2048") | {"up_proj": "24x8192", "embed_tokens": "32000", "lm_head": "32000"}
    assert shapes["weight_norm"] == vectors
    assert shapes["rezero"] == {"o_proj": "24", "down_proj": "24"}
