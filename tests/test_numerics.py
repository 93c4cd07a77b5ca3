"""Norms and power iteration against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import numerics
from jaxstab.table import Row

STACK = np.random.default_rng(0).normal(size=(3, 8, 5)).astype(np.float32)
STACKED = Row("up", "up_proj", (3, 8, 5), (None,) * 3, stacked=True)


@pytest.mark.parametrize("keepdims", [False, True])
def test_a_norm_per_layer_and_one_of_what_is_not_stacked(keepdims):
    per_layer = np.linalg.norm(np.float64(STACK), axis=(1, 2), keepdims=keepdims)
    np.testing.assert_allclose(numerics.matrix_norm(STACKED, STACK, keepdims), per_layer, rtol=1e-6)
    alone = numerics.matrix_norm(STACKED.replace(stacked=False), STACK, keepdims)
    np.testing.assert_allclose(alone, np.sqrt((np.float64(STACK) ** 2).sum(keepdims=keepdims)), rtol=1e-6)
    entries = np.sqrt(STACK[0].size)
    axes = numerics.layer_axes(STACKED, STACK)
    np.testing.assert_allclose(numerics.rms(jnp.asarray(STACK), axes, keepdims), per_layer / entries, rtol=1e-6)


def test_norms_of_half_precision_are_sums_in_float32():
    ones = jnp.ones(70_000, jnp.bfloat16)
    assert numerics.l2_norm(ones).dtype == jnp.float32
    np.testing.assert_allclose(numerics.l2_norm(ones), np.sqrt(70_000), rtol=1e-6)
    np.testing.assert_allclose(numerics.rms(ones), 1, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e18])
def test_power_iteration_converges_to_the_first_singular_vectors(scale):
    """At scales, too, at which the fourth power of an entry is no float32."""
    weight = scale * STACK[0]
    u, values, v = np.linalg.svd(np.float64(weight), full_matrices=False)

    def forward(vector):
        return weight @ vector

    def backward(vector):
        return vector @ weight

    start = jax.random.normal(jax.random.key(0), (5,))
    np.testing.assert_allclose(numerics.largest_singular_value(forward, backward, start, 200), values[0], rtol=1e-5)
    left, right = jax.lax.fori_loop(
        0, 200, lambda _, pair: numerics.power_iteration(forward, backward, pair[1]), (jnp.zeros(8), start)
    )
    np.testing.assert_allclose(np.abs(left @ u[:, 0]), 1, rtol=1e-5)
    np.testing.assert_allclose(np.abs(right @ v[0]), 1, rtol=1e-5)


def test_a_map_to_zero_has_the_value_zero_and_its_vectors_are_finite():
    def zeros(vector):
        return 0.0 * vector

    assert numerics.largest_singular_value(zeros, zeros, jnp.ones(4), 3) == 0
    np.testing.assert_array_equal(numerics.power_iteration(zeros, zeros, jnp.ones(4)), 0)
    np.testing.assert_array_equal(numerics.unit(jnp.zeros(4)), 0)
