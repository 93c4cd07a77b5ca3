"""Spectral norms, stable ranks and Jacobians against singular values by NumPy in float64, and bounds by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxstab import stability, table

RNG = np.random.default_rng(0)
STACK = {"layers": {"up": RNG.normal(size=(3, 24, 40)).astype(np.float32)}}
STACK["layers"]["up"][1] *= 1e-12  # squares of its entries are no float32s
STACK["layers"]["up"][2] = np.outer(RNG.normal(size=24), RNG.normal(size=40))
TABLE = table.read(STACK, {"up": "up_proj"})
ROW = TABLE["layers"]["up"]


def singular_values(stack):
    return np.linalg.svd(np.float64(stack), compute_uv=False)


def test_spectra_of_a_stack_are_those_of_its_layers():
    found = jax.jit(lambda weights: stability.weight_statistics(TABLE, weights))(STACK)
    values = singular_values(STACK["layers"]["up"])
    np.testing.assert_allclose(found["stability/spectral_norm/up_proj"], values[:, 0], rtol=2e-3)
    assert (found["stability/spectral_norm/up_proj"] <= values[:, 0] * (1 + 1e-5)).all()
    rank = (values**2).sum(-1) / values[:, 0] ** 2
    np.testing.assert_allclose(found["stability/stable_rank/up_proj"], rank, rtol=5e-3)
    np.testing.assert_allclose(found["stability/stable_rank/up_proj"][2], 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(256, 256), (256, 1024)])
def test_the_edge_of_a_random_spectrum_is_found_within_a_percent(shape):
    """The hardest case: the largest singular values of a random matrix lie close together."""
    weight = RNG.normal(size=shape).astype(np.float32)
    row = table.read({"up": weight}, {"up": "up_proj"})["up"]
    exact = singular_values(weight)[0]
    assert 0.99 * exact < stability.spectral_norm(row, weight) <= exact * (1 + 1e-5)


def test_a_matrix_of_zeros_has_norm_and_rank_zero():
    found = stability.weight_statistics(TABLE, jax.tree.map(jnp.zeros_like, STACK))
    assert not found["stability/spectral_norm/up_proj"].any() and not found["stability/stable_rank/up_proj"].any()


def test_the_jacobian_s_norm_is_its_largest_singular_value():
    mixed, out = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((12, 7), (7, 5)))

    def function(x):
        return jnp.tanh(x.reshape(-1) @ mixed) @ out

    x = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
    exact = singular_values(np.asarray(jax.jacobian(function)(x)).reshape(5, 12))[0]
    found = jax.jit(lambda x: stability.jacobian_norm(function, x, jax.random.key(0), 50))(x)
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_a_jacobian_s_vectors_and_stable_rank_are_numpy_s():
    mixed = jnp.asarray(RNG.normal(size=(12, 7)) * np.geomspace(1, 0.1, 7), jnp.float32)

    def function(x):
        return jnp.tanh(0.1 * (x.reshape(-1) @ mixed))

    x = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
    y, found = jax.jit(lambda x: stability.jacobian_spectrum(function, x, jax.random.key(0), 50, 4000))(x)
    left, values, right = np.linalg.svd(np.float64(jax.jacobian(function)(x)).reshape(7, 12))
    np.testing.assert_allclose(y, function(x), rtol=1e-6)
    np.testing.assert_allclose(found.norm, values[0], rtol=1e-4)
    np.testing.assert_allclose(abs(np.vdot(found.left, left[:, 0])), 1, rtol=1e-4)
    np.testing.assert_allclose(abs(np.vdot(found.right, right[0])), 1, rtol=1e-4)
    np.testing.assert_allclose(found.stable_rank, (values**2).sum() / values[0] ** 2, rtol=0.05)


@pytest.mark.parametrize(("width", "size"), [(12, 3), (5, 4)])
def test_the_entropy_of_a_product_s_change_is_that_of_its_singular_values(width, size):
    q, k, d_q, d_k = np.float32(RNG.normal(size=(4, width, size)) * np.array([1, 1, 1e-3, 2e-3])[:, None, None])
    change = np.float64(q + d_q) @ np.float64(k + d_k).T - np.float64(q) @ np.float64(k).T
    expected = scipy.stats.entropy(singular_values(change))
    np.testing.assert_allclose(stability.product_change_entropy(q, k, d_q, d_k), expected, rtol=1e-3)
    one = stability.product_change_entropy(q, k, np.outer(q[:, 0], np.eye(size)[0]), 0 * d_k)
    np.testing.assert_allclose(one, 0, atol=1e-3)  # of rank one
    assert stability.product_change_entropy(q, k, 0 * d_q, 0 * d_k) == 0


def test_bounds_of_spike_no_more_in_closed_form():
    """d_ffn = 4 d and Megatron's scales: (15) is 1 + 3.6 / (√(2N) s_x)."""
    width, depth = 2304, 24
    std = np.sqrt(2 / (5 * width))
    for std_x, excess in ((std, 39), (np.sqrt(2 / 5), 0.82), (1.0, 0.52)):
        bound = stability.mlp_bound(std, std / np.sqrt(2 * depth), std_x, width, 4 * width)
        np.testing.assert_allclose(bound, 1 + 3.6 / (np.sqrt(2 * depth) * std_x), rtol=1e-3)
        np.testing.assert_allclose(bound - 1, excess, rtol=0.02)
    np.testing.assert_allclose(stability.attention_bound(0.01, 0.5, 3.0, 400), 1 + 0.02 * 40 * 3)


def test_the_bound_holds_for_a_linear_branch_of_normal_matrices_and_is_near():
    width, mlp_width, std_1, std_2, std_x = 64, 256, 0.1, 0.05, 0.5
    first, last = RNG.normal(size=(width, mlp_width)) * std_1, RNG.normal(size=(mlp_width, width)) * std_2
    exact = singular_values(np.eye(width) + first @ last / std_x)[0]
    bound = stability.mlp_bound(std_1, std_2, std_x, width, mlp_width)
    assert exact < bound < 3 * exact
