"""rezero: one gate a branch, from zero."""

import jax
import numpy as np
import pytest

from jaxstab.initialize import draw, he, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.reparam import mlra, reparameterize, rezero
from jaxstab.table import rows
from tests.reparam.drawn import pulled_back

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
    trees = pulled_back(table, rezero())
    stored, used, delta, slopes = (tree["layers"]["mlp"]["down_proj"] for tree in trees)
    gate = stored["kernel"]["gate"]
    assert gate.shape == (3,) and stored["bias"]["gate"] is None
    np.testing.assert_allclose(used["kernel"], gate[:, None, None] * stored["kernel"]["weight"])
    np.testing.assert_allclose(used["bias"], gate[:, None] * stored["bias"]["weight"])
    np.testing.assert_allclose(slopes["kernel"]["weight"], gate[:, None, None] * delta["kernel"])
    np.testing.assert_allclose(slopes["bias"]["weight"], gate[:, None] * delta["bias"])
    expected = np.sum(delta["kernel"] * stored["kernel"]["weight"], (1, 2))
    expected += np.sum(delta["bias"] * stored["bias"]["weight"], 1)
    np.testing.assert_allclose(slopes["kernel"]["gate"], expected)


def test_there_is_one_gate_a_branch():
    for bias in (False, True):
        _, table = model(bias)
        gates = [row for row in rows(reparameterize(table, rezero()).table) if row.role == "gate"]
        assert [row.shape for row in gates] == [(3,), (3,)]
        assert {row.value for row in gates} == {0.0}
