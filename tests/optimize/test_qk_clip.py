"""QK-Clip: the shrunk weights give the logits that were asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.config import ConfigError
from jaxstab.optimize import OptimizerConfig, build
from jaxstab.optimize.qk_clip import qk_clip
from jaxstab.table import Row

LAYERS, WIDTH, HEADS, KEY_HEADS, SIZE = 2, 6, 4, 2, 3


def row(path, role, *shape):
    return Row(path, role, shape, (None,) * len(shape), True)


def rows_of(name, out):
    return {
        "kernel": {"weight": row(f"attn/{name}/kernel/weight", name, LAYERS, WIDTH, out)}
        | {"gate": row(f"attn/{name}/kernel/gate", "gate", LAYERS)},
        "bias": row(f"attn/{name}/bias", "bias", LAYERS, out),
    }


TABLE = {
    "q_proj": rows_of("q_proj", HEADS * SIZE),
    "k_proj": rows_of("k_proj", KEY_HEADS * SIZE),
    "v_proj": rows_of("v_proj", KEY_HEADS * SIZE),
    "o_proj": row("attn/o_proj/kernel", "o_proj", LAYERS, HEADS * SIZE, WIDTH),
}
RNG = np.random.default_rng(0)
RAW = jax.tree.map(lambda row: jnp.asarray(RNG.standard_normal(row.shape), jnp.float32), TABLE)
INPUTS = np.float64(RNG.standard_normal((5, WIDTH)))


def largest_logits(raw):
    """[L, H], for gated weights and biases, where head h uses key head h // 2, in float64."""
    found = []
    for layer in range(LAYERS):

        def project(name, layer=layer):
            stored = jax.tree.map(lambda x: np.float64(x[layer]), raw[name])
            flat = INPUTS @ (stored["kernel"]["gate"] * stored["kernel"]["weight"]) + stored["bias"]
            return flat.reshape(len(INPUTS), -1, SIZE)

        query, key = project("q_proj"), project("k_proj")
        key = np.repeat(key, HEADS // KEY_HEADS, axis=1)
        found.append(np.einsum("thk,shk->hts", query, key).max((1, 2)) / np.sqrt(SIZE))
    return np.array(found)


LOGITS = largest_logits(RAW)


def test_heads_above_the_threshold_come_down_to_it_and_others_stay():
    threshold = np.sort(LOGITS.reshape(-1, 2).max(1))[1] * 1.01  # two of the four groups are above it
    raw = qk_clip(threshold).project(TABLE, RAW, {"max_attention_logit": jnp.asarray(LOGITS, jnp.float32)})
    group = LOGITS.reshape(LAYERS, KEY_HEADS, 2).max(-1)
    factor = np.repeat(np.minimum(1, threshold / group), 2, axis=1)
    assert 0 < np.sum(factor < 1) < factor.size
    np.testing.assert_allclose(largest_logits(raw), factor * LOGITS, rtol=1e-5)
    reached = largest_logits(raw).reshape(LAYERS, KEY_HEADS, 2).max(-1)
    np.testing.assert_allclose(reached, np.minimum(group, threshold), rtol=1e-5)


def test_queries_and_keys_shrink_alike_and_nothing_else_changes():
    logits = jnp.asarray([[1.0, 400.0, 5.0, 6.0], [7.0, 8.0, 9.0, 10.0]])
    raw = qk_clip(100.0).project(TABLE, RAW, {"max_attention_logit": logits})
    ratio = jax.tree.map(lambda new, old: np.asarray(new / old), raw, RAW)
    for name, heads in (("q_proj", HEADS), ("k_proj", KEY_HEADS)):
        shrunk = heads // KEY_HEADS * SIZE  # the columns that belong to the first key head
        for found in (ratio[name]["kernel"]["weight"], ratio[name]["bias"]):
            np.testing.assert_allclose(found[0, ..., :shrunk], 0.5, rtol=1e-6)
            np.testing.assert_array_equal(found[0, ..., shrunk:], 1)
            np.testing.assert_array_equal(found[1], 1)
        np.testing.assert_array_equal(ratio[name]["kernel"]["gate"], 1)
    for name in ("v_proj", "o_proj"):
        assert jax.tree.all(jax.tree.map(lambda found: np.all(found == 1), ratio[name]))


@pytest.mark.parametrize("logit", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_changes_nothing(logit):
    raw = qk_clip(100.0).project(TABLE, RAW, {"max_attention_logit": jnp.full((LAYERS, HEADS), logit)})
    assert jax.tree.all(jax.tree.map(lambda new, old: jnp.all(new == old), raw, RAW))


def test_the_projection_is_off_by_default():
    assert build(OptimizerConfig(), TABLE, 200).project(RAW, {}) is RAW


def test_weights_in_several_factors_are_refused():
    table = {**TABLE, "more": row("attn/q_proj/kernel/second", "q_proj", LAYERS, WIDTH, WIDTH)}
    with pytest.raises(ConfigError, match="one stored matrix for q_proj, not 2"):
        qk_clip().project(
            table, {**RAW, "more": jnp.ones((LAYERS, WIDTH, WIDTH))}, {"max_attention_logit": jnp.ones((2, 4))}
        )
