"""sigma_reparam against NumPy in float64, written from the paper, and against Flax's SpectralNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.reparam import reparameterize, sigma_reparam
from jaxstab.table import Row

STACKED = Row("up", "up_proj", (3, 4, 6), (None,) * 3, True, std=0.5)
TABLE = {
    "up": STACKED,
    "down": Row("down", "down_proj", (3, 6, 4), (None,) * 3, True, std=0.5),
    "embed": Row("embed", "embed_tokens", (9, 4), (None,) * 2, False, std=1.0, multiplier=2.0),
}


def draw(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(size=row.shape) * row.std).astype(dtype) for name, row in TABLE.items()}


def iterate(weight, u):
    v = weight.T @ u
    v /= np.linalg.norm(v)
    u = weight @ v
    u /= np.linalg.norm(u)
    return u, v, u @ weight @ v


@pytest.mark.parametrize("differentiate", [True, False])
def test_values_and_gradients_over_four_updates_are_the_papers(differentiate):
    with jax.enable_x64(True):
        rep = reparameterize(TABLE, sigma_reparam(gate="one", differentiate=differentiate, iterations=2))
        raw, state = rep.init(jax.tree.map(jnp.asarray, draw(0)))
        vectors = {name: np.array(state[0][name]) for name in TABLE}
        for step in range(4):
            cotangents = draw(10 + step)
            weights, pullback, state = jax.vjp(lambda raw, s=state: rep.effective(raw, s), raw, has_aux=True)
            (gradients,) = pullback(jax.tree.map(jnp.asarray, cotangents))
            for name, row in TABLE.items():
                for layer in np.ndindex(row.shape[:-2]):
                    weight, gate = (np.asarray(raw[name][key])[layer] for key in ("weight", "gate"))
                    vectors[name][layer], v, sigma = iterate(weight, vectors[name][layer])
                    cotangent = row.multiplier * cotangents[name][layer]
                    inner = np.sum(cotangent * weight)
                    expected = gate / sigma * cotangent
                    if differentiate:
                        expected -= gate / sigma**2 * inner * np.outer(vectors[name][layer], v)
                    effective = row.multiplier * gate / sigma * weight
                    np.testing.assert_allclose(weights[name][layer], effective, rtol=1e-10)
                    np.testing.assert_allclose(gradients[name]["weight"][layer], expected, rtol=1e-9, atol=1e-11)
                    np.testing.assert_allclose(gradients[name]["gate"][layer], inner / sigma, rtol=1e-9)
                    np.testing.assert_allclose(state[0][name][layer], vectors[name][layer], rtol=1e-10)
            raw = jax.tree.map(lambda x, g: x - 0.05 * g, raw, gradients)


def test_values_and_gradients_over_three_updates_are_flaxs():
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.SpectralNorm(nn.Dense(4, use_bias=False))(x, update_stats=True)

    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32)
    rep = reparameterize({"up": STACKED}, sigma_reparam(gate="one"))
    raw, state = rep.init({"up": jnp.asarray(draw(2)["up"], jnp.float32)})
    # Flax keeps the vector of the output's side, we that of the input's: it gets the transpose.
    kernels = list(raw["up"]["weight"].swapaxes(1, 2))
    stats = [
        {"SpectralNorm_0": {"Dense_0/kernel/sigma": jnp.ones(()), "Dense_0/kernel/u": u[None]}} for u in state[0]["up"]
    ]

    def flax_loss(kernel, stats):
        variables = {"params": {"Dense_0": {"kernel": kernel}}, "batch_stats": stats}
        y, new = Normalized().apply(variables, x, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), new["batch_stats"]

    def loss(raw, state):
        weights, state = rep.effective(raw, state)
        return jnp.sum(jnp.sin(x @ weights["up"].swapaxes(1, 2))), state

    for _ in range(3):
        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(raw, state)
        flax = [jax.value_and_grad(flax_loss, has_aux=True)(*each) for each in zip(kernels, stats, strict=True)]
        np.testing.assert_allclose(value, sum(each for (each, _), _ in flax), rtol=1e-5)
        expected = np.stack([each.T for _, each in flax])
        np.testing.assert_allclose(gradient["up"]["weight"], expected, rtol=1e-4, atol=1e-5)
        raw["up"]["weight"] -= 0.1 * gradient["up"]["weight"]
        kernels = [kernel - 0.1 * each for kernel, (_, each) in zip(kernels, flax, strict=True)]
        stats = [each for (_, each), _ in flax]


def test_the_spectral_norm_is_the_gate_after_convergence():
    rep = reparameterize(TABLE, sigma_reparam(gate="one", iterations=1))
    raw, state = rep.init(jax.tree.map(jnp.asarray, draw(3, np.float32)))
    raw = jax.tree.map(lambda row, stored: {**stored, "gate": stored["gate"] * 1.7}, TABLE, raw)
    for _ in range(200):
        weights, state = rep.effective(raw, state)
    for name, row in TABLE.items():
        found = np.linalg.svd(weights[name], compute_uv=False)[..., 0]
        np.testing.assert_allclose(found, 1.7 * row.multiplier, rtol=1e-4)


def test_the_exact_start_has_the_spectral_norm_at_once():
    weights = jax.tree.map(jnp.asarray, draw(4, np.float32))
    raw, _ = reparameterize(TABLE, sigma_reparam(sigma=0.01)).init(weights)
    for name, row in TABLE.items():
        exact = np.linalg.svd(weights[name], compute_uv=False)[..., 0] / row.multiplier
        np.testing.assert_allclose(raw[name]["gate"], exact, rtol=1e-5)
        np.testing.assert_allclose(np.std(raw[name]["weight"]), 0.01 * np.std(weights[name]) / row.std, rtol=1e-5)
    rep = reparameterize(TABLE, sigma_reparam(gate="one"))
    merged = rep.merge(*rep.init(weights))
    np.testing.assert_allclose(np.linalg.svd(merged["up"], compute_uv=False)[:, 0], 1, rtol=1e-5)


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_gates_at_the_norm_keep_the_weights_whatever_the_iterations(iterations):
    weights = jax.tree.map(jnp.asarray, draw(5, np.float32))
    rep = reparameterize(TABLE, sigma_reparam(iterations=iterations))
    merged = rep.merge(*rep.init(weights))
    for name in TABLE:
        np.testing.assert_allclose(merged[name], weights[name], rtol=1e-5)
