"""Under remat=offload blocks' inputs wait in the host's memory, and gradients are those of every other policy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.initialize import draw, he, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import Transformer, read_table

TOKENS = np.random.default_rng(0).integers(0, 32, (2, 16)).astype(np.int32)


def model_of(remat):
    return ModelConfig(16, 2, heads=2, vocabulary=32, max_length=16, remat=remat)


def gradient_of(remat):
    model = Transformer(model_of(remat))
    return jax.jit(jax.grad(lambda weights: jnp.sum(jnp.sin(model.apply({"params": weights}, TOKENS)))))


def test_gradients_are_those_of_a_pass_that_keeps_everything():
    weights = draw(jax.random.key(0), scaled(read_table(model_of("none")), he()))
    ours, theirs = (gradient_of(remat)(weights) for remat in ("offload", "none"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_inputs_of_blocks_go_to_the_host():
    weights = draw(jax.random.key(0), scaled(read_table(model_of("none")), he()))
    assert "Host" in str(jax.make_jaxpr(gradient_of("offload"))(weights))
    assert "Host" not in str(jax.make_jaxpr(gradient_of("full"))(weights))
