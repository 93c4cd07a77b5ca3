"""rezero: one gate a branch, from zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.initialize import draw, he, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.reparam import mlra, reparameterize, rezero
from jaxstab.table import rows

TOKENS = jax.random.randint(jax.random.key(9), (2, 8), 0, 11)


def model(bias):
    config = ModelConfig(width=8, layers=3, heads=2, vocabulary=11, max_length=8, bias=bias, remat="none")
    return Transformer(config), scaled(read_table(config), he())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("methods", [(rezero(),), (rezero(), mlra(roles=("q_proj", "o_proj")))])
def test_every_block_is_the_identity_at_initialization(bias, methods):
    transformer, table = model(bias)
    weights = jax.tree.map(lambda x: x + 0.1, draw(jax.random.key(0), table))
    rep = reparameterize(table, *methods)
    merged = rep.merge(*rep.init(weights))
    logits = transformer.apply({"params": merged}, TOKENS)
    x = np.asarray(weights["embed_tokens"]["embedding"], np.float64)[TOKENS]
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * np.asarray(weights["norm"]["scale"])
    np.testing.assert_allclose(logits, x @ np.asarray(weights["lm_head"]["kernel"]), rtol=1e-4, atol=1e-5)


def test_values_and_gradients_are_those_of_one_gate_on_matrix_and_bias():
    _, table = model(bias=True)
    with jax.enable_x64(True):
        rep = reparameterize(table, rezero())
        rng = np.random.default_rng(0)
        raw, state = rep.init(jax.tree.map(lambda x: x.astype(jnp.float64), draw(jax.random.key(0), table)))
        raw = jax.tree.map(lambda x: x + rng.normal(size=x.shape), raw)
        weights, pullback = jax.vjp(lambda raw: rep.effective(raw, state)[0], raw)
        cotangent = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), weights)
        (gradient,) = pullback(cotangent)
    stored, used, delta, found = (
        jax.tree.map(np.asarray, tree["layers"]["mlp"]["down_proj"]) for tree in (raw, weights, cotangent, gradient)
    )
    gate = stored["kernel"]["gate"]
    assert gate.shape == (3,) and stored["bias"]["gate"] is None
    np.testing.assert_allclose(used["kernel"], gate[:, None, None] * stored["kernel"]["weight"])
    np.testing.assert_allclose(used["bias"], gate[:, None] * stored["bias"]["weight"])
    np.testing.assert_allclose(found["kernel"]["weight"], gate[:, None, None] * delta["kernel"])
    np.testing.assert_allclose(found["bias"]["weight"], gate[:, None] * delta["bias"])
    expected = np.sum(delta["kernel"] * stored["kernel"]["weight"], (1, 2))
    expected += np.sum(delta["bias"] * stored["bias"]["weight"], 1)
    np.testing.assert_allclose(found["kernel"]["gate"], expected)


def test_there_is_one_gate_a_branch():
    for bias in (False, True):
        _, table = model(bias)
        gates = [row for row in rows(reparameterize(table, rezero()).table) if row.role == "gate"]
        assert [row.shape for row in gates] == [(3,), (3,)]
        assert {row.value for row in gates} == {0.0}
