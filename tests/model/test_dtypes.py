"""What is bf16 and what is float32 where the compute dtype is bf16."""

import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxstab.initialize import draw, he, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.loss import chunked_loss
from jaxstab.model.transformer import read_table
from jaxstab.table import rows
from jaxstab.train.config import Config
from jaxstab.train.objective import loss_sums
from jaxstab.train.setup import set_up

MODEL = ModelConfig(32, 2, heads=2, mlp="swiglu", bias=True, vocabulary=64, max_length=16, dtype="bfloat16")
CONFIG = dataclasses.replace(
    Config(), model=MODEL, data=dataclasses.replace(Config().data, length=16), mesh=Config().mesh
)
WEIGHTS = draw(jax.random.key(0), scaled(read_table(MODEL), he()))
TOKENS = np.random.default_rng(0).integers(0, 64, (4, 17)).astype(np.int32)


def test_gradients_of_every_parameter_are_float32_sums():
    """Before they are rounded to bf16, that is: devices and micro-batches add them up as they are."""
    setup = set_up(CONFIG)
    gradients = jax.jit(lambda weights: jax.grad(lambda w: loss_sums(setup, w, TOKENS)[0])(weights))(WEIGHTS)
    rounded = [
        row.path
        for row, gradient in zip(rows(setup.table), jax.tree.leaves(gradients), strict=True)
        if gradient.dtype != jnp.float32 or (gradient == gradient.astype(jnp.bfloat16).astype(jnp.float32)).all()
    ]
    assert not rounded


def test_a_float32_gradient_of_a_bf16_model_is_near_that_of_the_float32_model():
    setups = set_up(CONFIG), set_up(dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, dtype="float32")))
    both = [jax.jit(lambda w, s=s: jax.grad(lambda w: loss_sums(s, w, TOKENS)[0])(w)) for s in setups]
    for rough, exact in zip(*(jax.tree.leaves(gradient(WEIGHTS)) for gradient in both), strict=True):
        assert np.linalg.norm(rough - exact) < 0.03 * np.linalg.norm(exact)


def dots(jaxpr):
    """Every product of matrices in a jaxpr and what it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from dots(inner)


def test_products_of_the_loss_take_bf16_and_accumulate_in_float32():
    hidden, targets = jnp.ones((2, 6, 8), jnp.bfloat16), jnp.zeros((2, 6), jnp.int32)

    def loss(hidden, lm_head):
        return chunked_loss(hidden, lm_head, targets, targets == 0, z_loss=1e-4, chunk=3)[0]

    products = list(dots(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, jnp.ones((8, 16))).jaxpr))
    assert len(products) == 3
    for product in products:
        assert [operand.aval.dtype for operand in product.invars] == [jnp.bfloat16] * 2
        assert product.outvars[0].aval.dtype == jnp.float32


def test_a_chunk_longer_than_the_batch_pads_nothing():
    hidden, targets = jnp.ones((2, 6, 8)), jnp.zeros((2, 6), jnp.int32)
    text = str(
        jax.make_jaxpr(lambda h, w: chunked_loss(h, w, targets, targets == 0, z_loss=0.0, chunk=128))(
            hidden, jnp.ones((8, 16))
        )
    )
    assert "128" not in text
