"""A trained Llama from elsewhere (llama2.c's stories260K), read into our weights, continues as it does in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.evaluate import generate, padded
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.reparam import reparameterize, wesar
from tests.stories import load, needs_stories

pytestmark = needs_stories


@pytest.fixture(scope="module")
def stories():
    config, weights, _, golden = load()
    shapes = jax.tree.map(lambda row: row.shape, read_table(config))
    assert shapes == jax.tree.map(lambda weight: weight.shape, weights)
    return config, weights, golden


def continuation(config, weights, golden):
    prompt = golden["prompt_ids"]
    length = len(golden["greedy_ids_float64"]) - len(prompt)
    (tokens,) = generate(Transformer(config), weights, *padded([prompt]), jax.random.key(0), length)
    return [*prompt, *tokens.tolist()]


def test_each_token_is_the_argmax_of_a_pass_without_a_cache(stories):
    config, weights, golden = stories
    ids = jnp.array([golden["greedy_ids_float64"]])
    logits = jax.jit(Transformer(config).apply)({"params": weights}, ids)
    start = len(golden["prompt_ids"])
    assert jnp.argmax(logits[0, start - 1 : -1], axis=-1).tolist() == golden["greedy_ids_float64"][start:]


def test_greedy_text_is_that_of_the_float64_reference(stories):
    config, weights, golden = stories
    assert len(golden["greedy_ids_float64"]) > 50
    assert continuation(config, weights, golden) == golden["greedy_ids_float64"]


def test_the_imported_model_survives_wesar(stories):
    config, weights, golden = stories
    rep = reparameterize(read_table(config), wesar())
    raw, state = rep.init(weights)
    stored = raw["layers"]["mlp"]["up_proj"]["kernel"]["weight"]
    np.testing.assert_allclose(np.sqrt(np.square(stored).mean((1, 2))), np.sqrt(4e-5), rtol=1e-4)
    assert continuation(config, rep.merge(raw, state), golden) == golden["greedy_ids_float64"]
