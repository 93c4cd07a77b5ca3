"""Clipping, accumulation and the guard, as the training step puts them together."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import initialize, optimize, scale, stability, table
from jaxstab.model.embeddings import unit
from jaxstab.model.loss import chunked_loss
from jaxstab.optimize import Hypers
from jaxstab.reparam import reparameterize, wesar
from jaxstab.train import objective
from jaxstab.train.config import Config
from jaxstab.train.setup import Setup
from jaxstab.train.state import TrainState
from jaxstab.train.step import train_step

BASE = Config()
BASE = dataclasses.replace(
    BASE,
    train=dataclasses.replace(BASE.train, batch_size=8, steps=10, z_loss=1e-2),
    optimizer=dataclasses.replace(BASE.optimizer, warmup=0),
)
HYPERS = Hypers(np.float32(1e-2), np.float32(0.1))
TOKENS = np.random.default_rng(0).integers(0, 24, (8, 9)).astype(np.int32)

# A model of two residual layers without attention: the step asks for no more.
SHAPES = {"embed_tokens": (24, 16), "layers": {"up_proj": (2, 16, 32), "down_proj": (2, 32, 16)}, "lm_head": (16, 24)}
TREE = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), SHAPES, is_leaf=lambda s: isinstance(s, tuple))
ROLES = {name: name for name in ("embed_tokens", "up_proj", "down_proj", "lm_head")}
TABLE = initialize.scaled(table.read(TREE, ROLES), initialize.he(), embedding=unit().multiplier)


def losses(setup, weights, tokens):
    """Rows have very different numbers of targets that count, so that micro-batches have too."""
    hidden = weights["embed_tokens"][tokens[:, :-1]]
    for up, down in zip(weights["layers"]["up_proj"], weights["layers"]["down_proj"], strict=True):
        hidden = hidden + jnp.tanh(hidden @ up) @ down
    mask = jnp.arange(8) <= tokens[:, :1] % 8
    loss, sums = chunked_loss(hidden, weights["lm_head"], tokens[:, 1:], mask, z_loss=BASE.train.z_loss, chunk=8)
    return loss, (sums, {})


@functools.cache
def stepper(clip_on="raw", max_norm=1e4, accumulation=1):
    clip = dataclasses.replace(BASE.optimizer.clip, global_norm=type(BASE.optimizer.clip.global_norm)(max_norm))
    config = dataclasses.replace(
        BASE,
        optimizer=dataclasses.replace(BASE.optimizer, clip=clip, clip_on=clip_on),
        train=dataclasses.replace(BASE.train, accumulation=accumulation),
    )
    rep = reparameterize(TABLE, wesar(sigma=0.02))
    optimizer = optimize.build(config.optimizer, rep.table, config.train.steps)
    setup = Setup(config, scale.make_mesh(config.mesh), None, TABLE, (), rep, optimizer)
    return rep, optimizer, jax.jit(functools.partial(train_step, setup))


@pytest.fixture(autouse=True)
def of_two_layers(monkeypatch):
    monkeypatch.setattr(objective, "loss_sums", losses)


@functools.cache
def start():
    rep, optimizer, _ = stepper()
    raw, state = rep.init(initialize.draw(jax.random.key(0), TABLE))
    moments = optimizer.clip.init(raw), optimizer.update.init(raw)
    return TrainState(jnp.int32(0), raw, state, *moments, stability.start())


@functools.cache
def by_hand():
    """Loss, gradient by the effective weights, and the function that pulls it back to what is stored."""
    rep, *_ = stepper()
    weights, pullback = jax.vjp(lambda raw: rep.merge(raw, start().reparam), start().raw)
    (total, (sums, _)), gradient = jax.jit(jax.value_and_grad(functools.partial(losses, None), has_aux=True))(
        weights, TOKENS
    )
    return total, sums, jax.tree.map(lambda leaf: leaf / sums.targets, gradient), lambda g: pullback(g)[0]


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.float64(leaf))) for leaf in jax.tree.leaves(tree)))


def close(one, other, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def updated(raw_gradient):
    """The stored parameters after an update with this gradient."""
    _, optimizer, _ = stepper()
    state = start()
    updates, _ = jax.jit(optimizer.update.update)(raw_gradient, state.optimizer, state.raw, hypers=HYPERS)
    return optax.apply_updates(state.raw, updates)


def clipped(gradient, max_norm):
    return jax.tree.map(lambda leaf: leaf * min(1.0, max_norm / norm(gradient)), gradient)


@pytest.mark.parametrize(("clip_on", "max_norm"), [("raw", 0.02), ("effective", 0.02), ("raw", 1e4)])
def test_the_chosen_gradient_is_clipped_to_the_norm(clip_on, max_norm):
    """Adam hides a constant factor in its first update, but not in its first moment."""
    _, _, effective, pull = by_hand()
    after, (scalars, _) = stepper(clip_on, max_norm)[2](start(), TOKENS, HYPERS)
    np.testing.assert_allclose(scalars["train/grad_norm_effective"], norm(effective), rtol=1e-4)
    np.testing.assert_allclose(scalars["train/grad_norm"], norm(pull(effective)), rtol=1e-4)
    assert scalars["train/clipped"] == (max_norm < 1)
    expected = clipped(pull(effective), max_norm) if clip_on == "raw" else pull(clipped(effective, max_norm))
    moments = optax.tree_utils.tree_get(after.optimizer, "mu")
    close(moments, jax.tree.map(lambda leaf: 0.1 * leaf, expected), atol=1e-7)
    close(after.raw, updated(expected), rtol=1e-3, atol=1e-4)


def test_raw_and_effective_norms_are_different_quantities_under_wesar():
    _, _, effective, pull = by_hand()
    assert norm(pull(effective)) > 5 * norm(effective)  # the gates, 1 / sigma = 50 at the embedding


def test_accumulated_micro_batches_are_the_large_batch():
    """Also where micro-batches hold different numbers of targets: a mean of means would differ."""
    counts, accumulation = TOKENS[:, 0] % 8 + 1, 4
    assert np.ptp(counts.reshape(-1, accumulation).sum(0)) > 0
    one, (scalars, arrays) = stepper()[2](start(), TOKENS, HYPERS)
    many, (their_scalars, their_arrays) = stepper(accumulation=accumulation)[2](start(), TOKENS, HYPERS)
    close((scalars, arrays), (their_scalars, their_arrays))
    close(optax.tree_utils.tree_get(one.optimizer, "mu"), optax.tree_utils.tree_get(many.optimizer, "mu"), atol=1e-7)
    close(one.raw, many.raw, rtol=1e-3, atol=1e-4)
    total, sums, *_ = by_hand()
    np.testing.assert_allclose(their_scalars["train/loss"], sums.cross_entropy / counts.sum(), rtol=1e-5)
    np.testing.assert_allclose(
        their_scalars["train/loss"] + their_scalars["train/z_loss"], total / counts.sum(), rtol=1e-5
    )


def test_a_step_s_update_ratios_are_those_of_what_it_stored():
    after, (scalars, arrays) = stepper()[2](start(), TOKENS, HYPERS)
    before = start().raw
    for name, found in {**scalars, **arrays}.items():
        if not name.startswith("stability/update_ratio/"):
            continue
        role = name.rsplit("/", 1)[1]
        old, new = (
            next(
                np.float64(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
                if f"'{role}'" in jax.tree_util.keystr(path) and leaf.ndim >= 2
            )
            for tree in (before, after.raw)
        )
        expected = np.linalg.norm(new - old, axis=(-2, -1)) / np.linalg.norm(old, axis=(-2, -1))
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert arrays["stability/update_ratio/down_proj"].shape == (2,)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_changes_nothing_until_the_host_has_answered(poison):
    step = stepper()[2]
    state, _ = step(start(), TOKENS, HYPERS)
    embedding = state.raw["embed_tokens"]
    bad = state._replace(raw=state.raw | {"embed_tokens": embedding | {"gate": embedding["gate"] * poison}})
    after, (scalars, _) = step(bad, TOKENS, HYPERS)
    assert scalars["train/finite"] == 0 and after.guard.halted
    jax.tree.map(np.testing.assert_array_equal, after._replace(guard=bad.guard), bad)
    # The cause is gone, the latch holds: a finite batch changes nothing either, until somebody opens it.
    latched, _ = step(state._replace(guard=after.guard), TOKENS, HYPERS)
    jax.tree.map(np.testing.assert_array_equal, latched, state._replace(guard=after.guard))
    opened, (scalars, _) = step(latched._replace(guard=state.guard), TOKENS, HYPERS)
    assert scalars["train/finite"] == 1 and opened.step == 2
    assert np.abs(opened.raw["lm_head"]["weight"] - state.raw["lm_head"]["weight"]).max() > 1e-4


def test_an_update_that_is_not_finite_halts_what_follows():
    """Its norm is known once it has been taken: what is gone back to is a checkpoint."""
    state = start()
    after, (scalars, _) = stepper()[2](state, TOKENS, HYPERS._replace(learning_rate=np.float32(np.inf)))
    assert np.isfinite(scalars["train/loss"]) and np.isfinite(scalars["train/grad_norm"])
    assert scalars["train/finite"] == 0 and scalars["train/skipped"] == 0 and after.guard.halted
    jax.tree.map(np.testing.assert_array_equal, after.guard.windows, state.guard.windows)
    following, (scalars, _) = stepper()[2](after, TOKENS, HYPERS)
    assert scalars["train/skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, following, after)
