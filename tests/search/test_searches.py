"""Searches of initial scales: their derivatives against closed formulas, and what they make of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.search import SEARCHES, Problem, gradinit, metainit
from jaxstab.search.base import LEAST, hessian_times
from jaxstab.search.metainit import quotient_and_gradient
from jaxstab.table import read

SHAPES = {
    "embed": jax.ShapeDtypeStruct((6, 4), jnp.float32),
    "layers": {"up": jax.ShapeDtypeStruct((2, 4, 5), jnp.float32), "scale": jax.ShapeDtypeStruct((2, 4), jnp.float32)},
    "head": jax.ShapeDtypeStruct((4, 6), jnp.float32),
}
ROLES = {"embed": "embed_tokens", "up": "up_proj", "scale": "norm", "head": "lm_head"}
DICE = np.random.default_rng(0)


def table_of(tied):
    table = read(SHAPES, ROLES)
    return {**table, "head": table["head"].replace(tied="embed")} if tied else table


def weights_of(table):
    return jax.tree.map(lambda row: jnp.asarray(DICE.normal(size=row.shape), jnp.float32), table)


def problem_of(gradient, tied=False):
    table = table_of(tied)
    return Problem(table, weights_of(table), gradient)


def test_the_gradient_quotient_of_a_quadratic_is_the_closed_formula():
    """L = ½ wᵀAw has g = Aw, H = A and no third derivative."""
    factor = DICE.normal(size=(7, 7))
    a, w, eps = factor @ factor.T, DICE.normal(size=7), 1e-3
    g = a @ w
    h, divisor = a @ g, g + eps * np.where(g >= 0, 1, -1)
    residual = (g - h) / divisor - 1
    expected = np.sign(residual) / 7 @ (((a - a @ a) * divisor[:, None] - (g - h)[:, None] * a) / divisor[:, None] ** 2)
    with jax.enable_x64(True):
        quotient, gradient = quotient_and_gradient(lambda w: jnp.asarray(a) @ w, jnp.asarray(w), eps)
    np.testing.assert_allclose(quotient, np.abs(residual).mean(), rtol=1e-12)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)


def test_the_gradient_quotient_of_a_cubic_is_the_closed_formula():
    """L = Σ w³/6 has g = w²/2 and Hg = w³/2: without ε, GQ is the mean of |w|."""
    w = DICE.normal(size=9)
    with jax.enable_x64(True):
        quotient, gradient = quotient_and_gradient(lambda w: w**2 / 2, jnp.asarray(w), 1e-14)
    np.testing.assert_allclose(quotient, np.abs(w).mean(), rtol=1e-9)
    np.testing.assert_allclose(gradient, np.sign(w) / 9, rtol=1e-9)


@pytest.mark.parametrize("tied", [False, True])
def test_slopes_are_the_derivatives_by_the_factors(tied):
    problem = problem_of(lambda weights, tokens: weights, tied)

    def loss(factors):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(problem.scaled(factors)))

    factors = problem.ones()
    assert {path: factor.shape for path, factor in factors.items()} == {"embed": (), "layers/up": (2,)} | (
        {} if tied else {"head": ()}
    )
    slopes = problem.slopes(jax.tree.map(jnp.cos, problem.weights))
    for path, expected in jax.grad(loss)(factors).items():
        np.testing.assert_allclose(slopes[path], expected, rtol=1e-5, err_msg=path)


def test_a_product_with_the_hessian_is_that_of_numpy():
    a, w, v = DICE.normal(size=(5, 5)), DICE.normal(size=5), DICE.normal(size=5)
    with jax.enable_x64(True):
        product = hessian_times(lambda w: jnp.asarray(a) @ w**3, jnp.asarray(w), jnp.asarray(v))
    np.testing.assert_allclose(product, a @ (3 * w**2 * v), rtol=1e-12)


def test_metainit_moves_norms_by_the_sign_of_their_slope_with_momentum():
    """L = Σ w³/6 over all weights: GQ = mean |w| grows with every norm, so that each step takes away η, then η(1+μ)."""
    search = metainit(learning_rate=0.01, momentum=0.5, eps=1e-12)
    problem = problem_of(lambda weights, tokens: jax.tree.map(lambda w: w**2 / 2, weights))
    factors, norms = problem.ones(), problem.norms()
    state = search.start(factors)
    for change in (0.01, 0.025):
        factors, state, _ = search.update(problem, factors, state, None, None)
        for path, norm in norms.items():
            np.testing.assert_allclose(norm * (1 - factors[path]), np.full(norm.shape, change), rtol=1e-3)


@pytest.mark.parametrize("search", [metainit(learning_rate=50.0, eps=1e-12), gradinit(learning_rate=50.0, step=0.1)])
def test_no_factor_falls_below_the_bound_and_a_matrix_of_zeros_stays_one(search):
    problem = problem_of(lambda weights, tokens: jax.tree.map(lambda w: w**2 / 2 * jnp.sign(w), weights))
    problem.weights["layers"]["up"] = problem.weights["layers"]["up"].at[0].set(0.0)
    factors, state = problem.ones(), search.start(problem.ones())
    for _ in range(2):
        factors, state, _ = search.update(problem, factors, state, jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    assert factors["layers/up"][0] == 1
    assert all(jnp.all(factor >= LEAST) and jnp.all(jnp.isfinite(factor)) for factor in factors.values())
    assert factors["embed"] == pytest.approx(LEAST)


def test_no_search_is_none():
    assert SEARCHES["none"]() is None
