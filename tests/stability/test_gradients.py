"""Gradient variance and noise scale against NumPy float64, and against a problem whose noise scale is known."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import table
from jaxstab.stability import gradient_statistics

RNG = np.random.default_rng(0)
WEIGHTS = {"layers": {"up": np.zeros((2, 3, 5))}, "head": np.zeros((4, 6)), "norm": np.zeros(4)}
TABLE = table.read(WEIGHTS, {"up": "up_proj", "head": "lm_head", "norm": "norm"})
COUNT = 7


def micro_gradients(mean, noise):
    """One gradient a micro-batch, the axis of micro-batches first."""
    return jax.tree.map(lambda w: (mean + noise * RNG.normal(size=(COUNT, *w.shape))).astype(np.float32), WEIGHTS)


def statistics(gradients, size=4):
    found = jax.jit(lambda batches: gradient_statistics(TABLE, lambda batch: batch, batches, size))(gradients)
    return found, jax.tree.map(np.float64, gradients)


def test_the_two_variances_are_numpy_s():
    found, gradients = statistics(micro_gradients(0.5, 2.0))
    up, head = gradients["layers"]["up"], gradients["head"]
    assert found["stability/gradient_variance/up_proj"].shape == (2,)
    expected = up.var(0, ddof=1).mean((1, 2))
    np.testing.assert_allclose(found["stability/gradient_variance/up_proj"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["stability/gradient_variance/lm_head"], head.var(0, ddof=1).mean(), rtol=1e-5)
    expected = up.mean(0).var((1, 2))
    np.testing.assert_allclose(found["stability/gradient_entry_variance/up_proj"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["stability/gradient_entry_variance/lm_head"], head.mean(0).var(), rtol=1e-4)


def test_a_variance_far_below_the_mean_is_not_lost():
    found, gradients = statistics(micro_gradients(1000.0, 0.1))
    expected = gradients["head"].var(0, ddof=1).mean()
    np.testing.assert_allclose(found["stability/gradient_variance/lm_head"], expected, rtol=0.01)


def test_the_noise_scale_is_mccandlish_et_al_s_estimate():
    size = 4
    found, gradients = statistics(micro_gradients(0.5, 2.0), size)
    flat = np.concatenate([g.reshape(COUNT, -1) for g in jax.tree.leaves(gradients)], 1)
    small, large = (flat**2).sum(1).mean(), (flat.mean(0) ** 2).sum()
    b, whole = size, COUNT * size
    square = (whole * large - b * small) / (whole - b)
    trace = (small - large) / (1 / b - 1 / whole)
    np.testing.assert_allclose(found["stability/gradient_noise_scale"], trace / square, rtol=1e-4)


def test_a_known_noise_scale_is_found_whatever_the_micro_batch():
    """Gradients of examples G + N(0, 1): B_simple = P / |G|², and batches of b examples have a b-th of the variance."""
    entries = sum(leaf.size for leaf in jax.tree.leaves(WEIGHTS))
    for size in (2, 32):
        micro = jax.tree.map(
            lambda w, size=size: (0.3 + RNG.normal(size=(4000, *w.shape)) / np.sqrt(size)).astype(np.float32), WEIGHTS
        )
        found, _ = statistics(micro, size)
        np.testing.assert_allclose(found["stability/gradient_noise_scale"], entries / (0.09 * entries), rtol=0.05)


def test_the_gradient_function_is_called_on_each_micro_batch():
    inputs = jnp.asarray(RNG.normal(size=(COUNT, 8, 4)), jnp.float32)
    weights = jax.tree.map(lambda w: jnp.asarray(RNG.normal(size=w.shape), jnp.float32), WEIGHTS)

    def gradient_of(x):
        return jax.grad(lambda w: jnp.mean(jnp.square(x @ w["head"])) + jnp.sum(w["layers"]["up"]) + w["norm"][0])(
            weights
        )

    found = gradient_statistics(TABLE, gradient_of, inputs, 8)
    head = np.stack([np.float64(gradient_of(x)["head"]) for x in inputs])
    np.testing.assert_allclose(found["stability/gradient_variance/lm_head"], head.var(0, ddof=1).mean(), rtol=1e-4)
    np.testing.assert_allclose(found["stability/gradient_variance/up_proj"], [0, 0], atol=1e-12)
