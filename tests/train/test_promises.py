"""What initial scales and norm placements promise about depth, on small models.

Effects are root mean square changes of the logits, divided by the learning rate.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab.initialize import deepnorm, draw, normal, scaled, small, t_fixup, xavier
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.model.placements import PlacementConfig
from jaxstab.model.transformer import Block, Transformer, read_table, rotary_tables
from jaxstab.reparam import reparameterize, rezero

WIDTH, LENGTH, SHALLOW, DEEP = 16, 8, 2, 16
TOKENS = np.random.default_rng(0).integers(0, 31, (4, LENGTH + 1)).astype(np.int32)
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]
SMALL = (2 / (5 * WIDTH)) ** 0.5


def config_of(placement, layers):
    return ModelConfig(
        width=WIDTH,
        layers=layers,
        heads=2,
        vocabulary=31,
        max_length=LENGTH,
        remat="none",
        norm_placement=PlacementConfig(method=placement),
    )


def draws(config, scale, embedding="plain"):
    table = scaled(read_table(config), scale, embedding=EMBEDDINGS[embedding]().multiplier)
    return [draw(jax.random.key(seed), table) for seed in range(4)]


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, TARGETS).mean()


@functools.cache
def gradient_and_logits(placement, layers):
    """Jitted: weights -> (gradient of the loss, logits)."""

    def loss(weights):
        logits = Transformer(config_of(placement, layers)).apply({"params": weights}, INPUTS)
        return cross_entropy(logits), logits

    return jax.jit(jax.grad(loss, has_aux=True))


def effect(placement, layers, scale, optimizer, rate):
    """What the first update of the blocks' matrices does to the logits, as a mean over draws.

    Matrices alone: the papers' bounds are sums over them, and leave out the gains of norms.
    """
    step, found = gradient_and_logits(placement, layers), []
    for weights in draws(config_of(placement, layers), scale):
        gradient, before = step(weights)
        blocks = jax.tree.map(lambda g: g if g.ndim == 3 else jnp.zeros_like(g), gradient["layers"])
        update, _ = optimizer.update(blocks, optimizer.init(weights["layers"]))
        _, after = step(weights | {"layers": optax.apply_updates(weights["layers"], update)})
        found.append(jnp.sqrt(jnp.mean((after - before) ** 2)) / rate)
    return np.mean(found)


@pytest.mark.parametrize(
    ("placement", "scale"), [("deepnorm", deepnorm()), ("none", t_fixup())], ids=["deepnorm", "t_fixup"]
)
def test_the_first_update_s_effect_does_not_grow_with_depth(placement, scale):
    """A gradient step's effect is O(rate) at any depth (Wang et al. 2022; Huang et al. 2020).

    Adam's steps have one size whatever the gradient. A branch's share of a gradient step is the square of its gradient,
    O(1/N), so that of Adam's is O(1/sqrt(N)) and their sum O(sqrt(N)).
    """

    def growth(scale, optimizer, rate):
        shallow, deep = (effect(placement, layers, scale, optimizer, rate) for layers in (SHALLOW, DEEP))
        return deep / shallow

    assert growth(scale, optax.sgd(1e-3), 1e-3) < 1.25
    assert growth(scale, optax.adam(1e-5), 1e-5) < (DEEP / SHALLOW) ** 0.5
    assert growth(xavier(), optax.sgd(1e-3), 1e-3) > 4, "without the scale that belongs to the placement"


def test_a_block_s_jacobian_is_as_large_as_the_embedding_is_small():
    """Takase et al. 2025, equation 15: |dy/dx'| <= 1 + s1 s2 / s_x' (sqrt(d) + sqrt(d_ffn))^2."""
    config = config_of("pre", DEEP)
    block = Block(config)

    def excess(x, weights):
        def branch(x):
            return block.apply({"params": weights}, x[None, None], 1.0, method="mlp_branch")[0, 0] - x

        return jnp.linalg.norm(jax.jacrev(branch)(x), 2)

    (weights, *_) = draws(config, small())
    first = jax.tree.map(lambda leaf: leaf[0], weights["layers"])
    x = SMALL * jax.random.normal(jax.random.key(0), (64, WIDTH))
    of_each = jax.jit(jax.vmap(excess, in_axes=(0, None)))
    plain, scaled_up = of_each(x, first), of_each(WIDTH**0.5 * x, first)
    np.testing.assert_allclose(plain / scaled_up, WIDTH**0.5, rtol=0.01)
    constant = (WIDTH**0.5 + (4 * WIDTH) ** 0.5) ** 2
    bound = SMALL * SMALL / (2 * DEEP) ** 0.5 / jnp.std(x, axis=-1) * constant
    assert np.all(plain < bound) and np.mean(plain / bound) > 0.1


@functools.cache
def gradients_before_blocks(layers):
    """Jitted: weights -> (the norms of the gradient by what enters each block, the RMS of what enters and leaves)."""
    config = config_of("pre", layers)
    block, rotary = Block(config), rotary_tables(LENGTH, config.head_dim, config.rope_theta)

    def loss(nudges, weights):
        def body(x, layer):
            weights, number, nudge = layer
            return block.apply({"params": weights}, x + nudge, number, rotary, None)[0], None

        first = weights["embed_tokens"]["embedding"][INPUTS]
        last, _ = jax.lax.scan(body, first, (weights["layers"], jnp.arange(1.0, layers + 1), nudges))
        logits = last / rms(last, axis=-1, keepdims=True) @ weights["lm_head"]["kernel"]
        return cross_entropy(logits), (rms(first), rms(last))

    def rms(x, **axes):
        return jnp.sqrt(jnp.mean(x**2, **axes))

    def norms(weights):
        gradients, sizes = jax.grad(loss, has_aux=True)(jnp.zeros((layers, *INPUTS.shape, WIDTH)), weights)
        return jnp.linalg.norm(gradients.reshape(layers, -1), axis=-1), sizes

    return jax.jit(norms)


def gradient_growth(layers, scale, embedding):
    """How much larger the gradient is before the first block than before the last; and the shortcut's own growth."""
    found = []
    for weights in draws(config_of("pre", layers), scale, embedding):
        norms, (entering, leaving) = gradients_before_blocks(layers)(weights)
        found.append((norms[0] / norms[-1], leaving / entering))
    return np.mean(found, axis=0)


def test_a_small_embedding_makes_pre_norm_gradients_grow_towards_the_input():
    """Products of 1 + c/s_x': the small shortcut at the start counts, and an embedding of std near 1 takes it away."""
    (plain, shortcut), (mild, _), (unit, _) = (
        gradient_growth(DEEP, small(), each) for each in ("plain", "scaled", "unit")
    )
    assert plain > 2 and mild < 1.3 and unit < 1.15
    np.testing.assert_allclose(plain, shortcut, rtol=0.4)  # c/s_x' is also how fast s_x' itself grows


def test_without_residual_scaling_they_grow_with_depth():
    unscaled = normal(std=SMALL, depth_scaled=False)
    shallow, deep = (gradient_growth(layers, unscaled, "plain")[0] for layers in (SHALLOW, DEEP))
    assert deep > 3 * shallow
    assert gradient_growth(DEEP, small(), "plain")[0] < 2 * gradient_growth(SHALLOW, small(), "plain")[0]


def test_rezero_without_norms_starts_as_the_model_without_branches():
    config = config_of("none", SHALLOW)
    rep = reparameterize(scaled(read_table(config), xavier()), rezero())
    weights = draws(config, xavier())[0]
    _, logits = gradient_and_logits("none", SHALLOW)(rep.merge(*rep.init(weights)))
    table, head = (
        np.float64(weights[name][leaf]) for name, leaf in (("embed_tokens", "embedding"), ("lm_head", "kernel"))
    )
    np.testing.assert_allclose(logits, table[INPUTS] @ head, rtol=1e-5, atol=1e-6)
