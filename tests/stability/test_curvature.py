"""Curvature along directions, critical steps and eigenvalues, against closed forms, NumPy and SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import eigsh

from jaxstab import stability

RNG = np.random.default_rng(0)


def tree_of(vector):
    split = jnp.split(jnp.asarray(vector, jnp.float32), [4], axis=-1)
    return {"vector": split[0], "matrix": split[1].reshape(2, 6)}


def vector_of(tree):
    return jnp.concatenate([tree["vector"], tree["matrix"].ravel()])


def symmetric(eigenvalues):
    basis, _ = np.linalg.qr(RNG.normal(size=(16, 16)))
    return basis @ np.diag(eigenvalues) @ basis.T


def test_quotients_are_numpy_s():
    hessian, d, left = RNG.normal(size=(16, 16)), RNG.normal(size=16), RNG.normal(size=16)
    product = tree_of(hessian @ d)
    np.testing.assert_allclose(stability.quotient(tree_of(d), product), d @ hessian @ d / (d @ d), rtol=1e-5)
    np.testing.assert_allclose(
        stability.quotient(tree_of(d), product, tree_of(left)), left @ hessian @ d / (d @ d), rtol=1e-5
    )
    assert stability.quotient(tree_of(0 * d), tree_of(0 * d)) == 0


@pytest.mark.parametrize("critical", [0.003, 0.4, 0.98, 1.02, 7.0, 900.0])
def test_the_critical_step_is_where_a_parabola_is_back_at_its_start(critical):
    step = jax.jit(lambda critical: stability.critical_step(lambda t: 1e-3 * t * (t - critical)))(critical)
    np.testing.assert_allclose(step, critical, rtol=0.025)


def test_the_first_of_two_rises_counts_and_a_loss_that_is_not_finite_is_one():
    assert abs(float(stability.critical_step(lambda t: -jnp.sin(t))) - np.pi) < 0.03 * np.pi
    np.testing.assert_allclose(stability.critical_step(lambda t: jnp.where(t > 3, jnp.nan, -t)), 3, rtol=0.025)
    np.testing.assert_allclose(stability.critical_step(lambda t: jnp.where(t > 3, jnp.inf, -t)), 3, rtol=0.025)


def test_ends_where_the_loss_rises_nowhere_or_everywhere():
    assert stability.critical_step(lambda t: -t) == 2**14
    assert stability.critical_step(lambda t: t) == 2**-14
    assert np.isnan(stability.critical_step(lambda t: jnp.nan * t))


def test_evaluations_are_bounded_and_few():
    counts = []
    for critical in (1e-6, 0.1, 1.5, 30.0):
        calls = []

        def loss_at(t, critical=critical, calls=calls):
            jax.debug.callback(calls.append, t)
            return t * (t - critical)

        jax.block_until_ready(stability.critical_step(loss_at))
        jax.effects_barrier()
        counts.append(len(calls))
    assert counts[0] == 16 and max(counts[1:]) <= 11 and counts[2] == 7


@pytest.mark.parametrize("eigenvalues", [np.arange(16.0), -np.arange(1, 17.0), np.geomspace(1e-3, 1e3, 16)])
def test_the_largest_eigenvalue_is_scipy_s(eigenvalues):
    hessian = symmetric(eigenvalues)
    expected = eigsh(hessian, k=1, which="LA", return_eigenvectors=False)[0]
    matrix = jnp.asarray(hessian, jnp.float32)

    def product(tree):
        return tree_of(jnp.matmul(matrix, vector_of(tree), precision="highest"))

    lanczos = jax.jit(lambda start: stability.largest_eigenvalue(product, start, 16))
    np.testing.assert_allclose(lanczos(tree_of(RNG.normal(size=16))), expected, rtol=1e-3, atol=1e-3)


def test_lanczos_is_never_above_and_goes_on_past_an_eigenvector():
    hessian = np.diag(np.arange(1, 17.0))
    matrix = jnp.asarray(hessian, jnp.float32)
    reached = [
        float(stability.largest_eigenvalue(lambda v: tree_of(matrix @ vector_of(v)), tree_of(np.ones(16)), steps))
        for steps in (1, 3, 6, 10)
    ]
    assert reached == sorted(reached) and reached[0] == pytest.approx(8.5) and 15.5 < reached[-1] <= 16.001
    alone = stability.largest_eigenvalue(lambda v: tree_of(matrix @ vector_of(v)), tree_of(np.eye(16)[3]), 5)
    assert np.isfinite(alone)
