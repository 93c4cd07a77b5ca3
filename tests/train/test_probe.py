"""The probe: Jacobians against exact ones of a tiny model, beside their bounds. tests/stability/test_stories.py has
what else it sees against NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import initialize
from jaxstab.initialize import he, small
from jaxstab.model.config import ModelConfig
from jaxstab.model.placements import PlacementConfig
from jaxstab.model.transformer import Block, Transformer, read_table, rotary_tables
from jaxstab.train.probe import probe

CONFIG = ModelConfig(width=8, layers=2, heads=2, mlp_width=16, vocabulary=31, max_length=6, remat="none")
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 6)).astype(np.int32)


def drawn(config, scale=he, embedding=0.7):
    weights = initialize.draw(jax.random.key(1), initialize.scaled(read_table(config), scale()))
    weights["embed_tokens"] = jax.tree.map(
        lambda x: embedding * jax.random.normal(jax.random.key(2), x.shape), weights["embed_tokens"]
    )
    return weights


@functools.partial(jax.jit, static_argnums=(0, 3))
def probed(config, weights, segments=None, iterations=60):
    return probe(Transformer(config), weights, TOKENS, segments, iterations)


def exact_jacobian_norms(config, weights):
    """Of the first sequence, a layer at a time: the largest singular values of the whole matrices."""
    block, rotary = Block(config), rotary_tables(TOKENS.shape[1], config.head_dim, config.rope_theta)
    x = weights["embed_tokens"]["embedding"][TOKENS[:1]]
    found = {"attention": [], "mlp": []}
    for index in range(config.layers):
        layer = {"params": jax.tree.map(lambda w, index=index: w[index], weights["layers"])}
        branches = {
            "attention": lambda x, own=layer, number=index + 1.0: block.apply(
                own, x, number, rotary, None, method="attention_branch"
            ),
            "mlp": lambda x, own=layer, number=index + 1.0: block.apply(own, x, number, method="mlp_branch"),
        }
        after = x
        for name, branch in branches.items():
            jacobian = np.float64(jax.jit(jax.jacobian(branch))(x)).reshape(x.size, x.size)
            found[name].append(np.linalg.svd(jacobian, compute_uv=False)[0])
            after = after + branch(x) - x
            x = x if config.parallel else after
        x = after
    return found


@pytest.mark.parametrize(
    ("placement", "parallel", "sinks"),
    [("pre", False, False), ("pre", True, False), ("post", False, False), ("pre", False, True)],
)
def test_jacobian_norms_are_the_largest_singular_values(placement, parallel, sinks):
    config = dataclasses.replace(
        CONFIG, norm_placement=PlacementConfig(placement), parallel=parallel, attention_sink=sinks
    )
    weights = drawn(config)
    found = probed(config, weights)
    for branch, expected in exact_jacobian_norms(config, weights).items():
        np.testing.assert_allclose(found[f"stability/jacobian/{branch}"], expected, rtol=5e-3, err_msg=branch)
        assert (f"stability/jacobian_bound/{branch}" in found) == (placement == "pre")


def test_bounds_hold_at_initialization_and_show_the_two_conditions():
    """Small sub-layers under a large shortcut have Jacobians near 1; an embedding that is too small hasn't."""
    config = dataclasses.replace(CONFIG, width=64, heads=4, mlp_width=0, layers=3)
    bounds = {}
    for embedding in (1.0, 0.02):
        found = probed(config, drawn(config, small, embedding))
        for branch in ("attention", "mlp"):
            norms, bound = (found[f"stability/{name}/{branch}"] for name in ("jacobian", "jacobian_bound"))
            assert (norms >= 0.9).all() and (norms <= 1.02 * bound).all(), (embedding, branch, norms, bound)
            bounds[embedding, branch] = float(bound[0]), float(norms[0])
    for branch in ("attention", "mlp"):
        (large_bound, large), (small_bound, too_small) = bounds[1.0, branch], bounds[0.02, branch]
        assert too_small > 2 * large and small_bound > 2 * large_bound, bounds


def test_gains_of_the_norms_count_in_the_bounds():
    weights = drawn(CONFIG)
    norms = {"input_layernorm": "attention", "post_attention_layernorm": "mlp"}
    before = probed(CONFIG, weights)
    for norm in norms:
        weights["layers"][norm]["scale"] = 3 * weights["layers"][norm]["scale"]
    after = probed(CONFIG, weights)
    # What is behind the first branch changes with it; W_1's share is 3 times what it was there.
    excess = [found["stability/jacobian_bound/mlp"][0] - 1 for found in (before, after)]
    assert excess[1] > 1.5 * excess[0]
    for branch in norms.values():
        assert (after[f"stability/jacobian/{branch}"] <= 1.15 * after[f"stability/jacobian_bound/{branch}"]).all()


def test_names_and_shapes():
    config = dataclasses.replace(CONFIG, mlp="swiglu", bias=True, norm="layernorm", dtype="bfloat16", layers=3)
    found = probed(config, drawn(config))
    stacked = {f"{name}/{branch}" for name in ("shortcut_std", "jacobian") for branch in ("attention", "mlp")}
    stacked |= {f"{name}/{head}" for name in ("attention_entropy", "max_attention_logit") for head in (0, 1)}
    stacked |= {"dead_units", "max_activation", "jacobian_bound/attention"}
    scalars = {"shortcut_std/embedding", "max_logit"}
    assert {name.removeprefix("stability/") for name in found} == stacked | scalars
    assert all(found[f"stability/{name}"].shape == (3,) for name in stacked)
    assert all(found[f"stability/{name}"].shape == () for name in scalars)
    assert {value.dtype.name for value in found.values()} == {"float32"}


def test_dead_units_are_those_that_no_token_wakes():
    config = dataclasses.replace(CONFIG, mlp="relu", bias=True)
    weights = drawn(config)
    bias = weights["layers"]["mlp"]["up_proj"]["bias"]
    weights["layers"]["mlp"]["up_proj"]["bias"] = bias.at[0, :4].set(-1e3).at[1, :].set(-1e3)
    found = probed(config, weights)
    np.testing.assert_allclose(found["stability/dead_units"][1], 1)
    assert 0.25 <= found["stability/dead_units"][0] < 0.5
    assert found["stability/max_activation"][1] == 0


def test_documents_bound_what_attention_sees():
    weights = drawn(CONFIG)
    alone = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    found = probed(CONFIG, weights, alone)
    np.testing.assert_allclose(found["stability/attention_entropy/0"], np.zeros(2), atol=1e-6)
