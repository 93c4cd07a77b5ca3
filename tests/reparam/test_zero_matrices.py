"""Matrices of zeros, as zero-initialised and imported models have them, under every registered method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.initialize import draw, he, scaled
from jaxstab.reparam import METHODS, mlra, reparameterize, sigma_reparam, weight_norm, wesar
from jaxstab.table import read, rows

SHAPES = {
    "embed": jax.ShapeDtypeStruct((9, 4), jnp.float32),
    "layers": {
        "q": jax.ShapeDtypeStruct((3, 4, 4), jnp.float32),
        "down": jax.ShapeDtypeStruct((3, 6, 4), jnp.float32),
    },
    "head": jax.ShapeDtypeStruct((4, 9), jnp.float32),
}
READ = read(SHAPES, {"embed": "embed_tokens", "q$": "q_proj", "down$": "down_proj", "head": "lm_head"})
TABLES = {"drawn": scaled(READ, he()), "imported": READ}

VARIANTS = {name: [method()] for name, method in METHODS.items()} | {
    "wesar, fixed": [wesar(trainable_gates=False)],
    "weight_norm, constant": [weight_norm(gate="constant")],
    "weight_norm, feature": [weight_norm(embedding="feature")],
    "sigma_reparam, one": [sigma_reparam(gate="one")],
    "sigma_reparam, iterations": [sigma_reparam(iterations=2)],
    "mlra, std": [mlra(std=0.02)],
    "mlra, control": [mlra(std=0.02, control=True)],
    "mlra+wesar": [mlra(), wesar()],
    "mlra+weight_norm": [mlra(), weight_norm()],
    "mlra+sigma_reparam": [mlra(), sigma_reparam()],
}


def with_zeros():
    """Weights with a layer, a unit of a layer, a token and a matrix of zeros."""
    weights = draw(jax.random.key(0), TABLES["drawn"])
    layers = weights["layers"]
    return {
        "embed": weights["embed"].at[5].set(0),
        "layers": {"q": layers["q"].at[1].set(0), "down": layers["down"].at[1, :, 2].set(0)},
        "head": jnp.zeros_like(weights["head"]),
    }


WEIGHTS, COTANGENT = with_zeros(), draw(jax.random.key(1), TABLES["drawn"])


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("methods", VARIANTS.values(), ids=VARIANTS)
def test_zeros_stay_finite_and_zero_and_can_be_trained(methods, table):
    rep = reparameterize(table, *methods)

    @jax.jit
    def descend(raw, state):
        weights, pullback, state = jax.vjp(lambda raw: rep.effective(raw, state), raw, has_aux=True)
        (gradient,) = pullback(COTANGENT)
        return jax.tree.map(lambda leaf, g: leaf - 0.01 * g, raw, gradient), state, weights

    raw, state = rep.init(WEIGHTS)
    trees = [raw, state]
    for _ in range(3):  # a gate of zero moves first, and then what is behind it
        raw, state, weights = descend(raw, state)
        trees += [raw, state, weights]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trees))
    first, last = trees[4], trees[-1]
    for row, given, before, after in zip(rows(table), *map(jax.tree.leaves, (WEIGHTS, first, last)), strict=True):
        zeros = np.asarray(given) == 0
        if all(method.preserves for method in methods if method.applies(row)):
            np.testing.assert_allclose(before, given, rtol=1e-5, atol=1e-7, err_msg=row.path)
            np.testing.assert_array_equal(np.asarray(before)[zeros], 0, err_msg=row.path)
        assert np.asarray(after != before)[zeros].all(), f"zeros of {row.path} get no gradient"
