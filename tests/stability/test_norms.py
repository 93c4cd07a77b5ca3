"""Norms and update ratios against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import table
from jaxstab.reparam import reparameterize, wesar
from jaxstab.stability import global_norm, matrix_norm, update_ratio

RNG = np.random.default_rng(0)
WEIGHTS = {
    "layers": {"up": RNG.normal(size=(3, 4, 6)).astype(np.float32), "norm": np.ones((3, 4), np.float32)},
    "head": RNG.normal(size=(4, 9)).astype(np.float32),
}
TABLE = table.read(WEIGHTS, {"up": "up_proj", "norm": "norm", "head": "lm_head"})


def test_an_update_ratio_is_a_vector_over_layers_for_every_matrix():
    update = jax.tree.map(lambda leaf: 0.1 * RNG.normal(size=leaf.shape).astype(np.float32), WEIGHTS)
    found = jax.jit(lambda du, w: update_ratio(TABLE, du, w))(update, WEIGHTS)
    assert found.keys() == {"up_proj", "lm_head"}
    expected = [
        np.linalg.norm(du) / np.linalg.norm(w)
        for du, w in zip(update["layers"]["up"], WEIGHTS["layers"]["up"], strict=True)
    ]
    np.testing.assert_allclose(found["up_proj"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        found["lm_head"], np.linalg.norm(update["head"]) / np.linalg.norm(WEIGHTS["head"]), rtol=1e-5
    )


def test_under_wesar_it_is_that_of_the_stored_matrix_and_gates_have_none():
    rep = reparameterize(TABLE, wesar())
    raw, _ = rep.init(WEIGHTS)
    update = jax.tree.map(lambda leaf: 0.25 * leaf, raw)
    found = update_ratio(rep.table, update, raw)
    assert found.keys() == {"up_proj", "lm_head"}
    np.testing.assert_allclose(found["up_proj"], [0.25] * 3, rtol=1e-5)


def test_norms_of_half_precision_are_summed_in_float32():
    weight = jnp.full((512, 512), 0.1, jnp.bfloat16)
    found = matrix_norm(table.rows(TABLE)[0], weight)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.linalg.norm(np.float64(weight)), rtol=1e-5)


def test_the_global_norm_is_over_vectors_and_gates_too():
    rep = reparameterize(TABLE, wesar())
    raw, _ = rep.init(WEIGHTS)
    expected = np.linalg.norm(np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(raw)]))
    np.testing.assert_allclose(jax.jit(lambda raw: global_norm(rep.table, raw))(raw), expected, rtol=1e-6)
