"""The chunked loss against float64 NumPy and the plain loss over all logits, in value, gradient and memory."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxstab.model.config import ModelConfig
from jaxstab.model.loss import chunked_loss, output_logits, sums_of_logits
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.train.config import Config
from jaxstab.train.objective import loss_sums
from jaxstab.train.setup import set_up

B, T, D, V = 3, 7, 5, 11
Z_LOSS = 0.3
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, T, D)).astype(np.float32)
HEAD = RNG.normal(size=(D, V)).astype(np.float32)
TARGETS = RNG.integers(0, V, (B, T)).astype(np.int32)
MASKS = {"all": np.ones((B, T), bool), "some": RNG.random((B, T)) < 0.6, "a row": np.arange(B)[:, None] < [2] * T}
CHUNKS = [1, 3, 7, 16]


def reference(hidden, head, mask, z_loss=Z_LOSS):
    """(total, cross-entropy, log(Z)^2, log(Z)), summed in float64."""
    logits = hidden.astype(np.float64) @ head.astype(np.float64)
    log_z = logsumexp(logits, -1)
    cross_entropy = log_z - np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]
    terms = (cross_entropy + z_loss * log_z**2, cross_entropy, log_z**2, log_z)
    return tuple(float(term[mask].sum()) for term in terms)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_the_sums_are_the_float64_ones_for_any_chunk(mask, chunk):
    total, sums = jax.jit(chunked_loss, static_argnames="chunk")(
        HIDDEN, HEAD, TARGETS, mask, z_loss=Z_LOSS, chunk=chunk
    )
    expected = reference(HIDDEN, HEAD, mask)
    np.testing.assert_allclose([total, sums.cross_entropy, sums.z_loss, sums.log_z], expected, rtol=1e-5)
    assert sums.targets == mask.sum()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_gradient_is_that_of_float64_differences(chunk):
    mask = MASKS["some"]
    differentiate = jax.jit(jax.grad(chunked_loss, argnums=(0, 1), has_aux=True), static_argnames="chunk")
    (d_hidden, d_head), _ = differentiate(HIDDEN, HEAD, TARGETS, mask, z_loss=Z_LOSS, chunk=chunk)
    assert np.all(d_hidden[~mask] == 0)
    for _ in range(5):
        along_hidden, along_head = RNG.normal(size=HIDDEN.shape), RNG.normal(size=HEAD.shape)
        ahead, behind = (
            reference(HIDDEN + step * along_hidden, HEAD + step * along_head, mask)[0] for step in (1e-5, -1e-5)
        )
        along = np.vdot(d_hidden, along_hidden) + np.vdot(d_head, along_head)
        np.testing.assert_allclose(along, (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-4)


def plain_loss(hidden, head, targets, mask, *, z_loss, chunk=0):
    """The same by the textbook, over all logits at once."""
    logits = jnp.einsum("btd,dv->btv", hidden, head)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    cross_entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(mask, cross_entropy + z_loss * log_z**2, 0.0)), ()


def test_every_entry_of_the_gradient_is_the_plain_loss_s_at_any_scale():
    """Scaled, as in a mean over targets, for the backward pass to be more than what the forward pass left."""

    def gradient(loss):
        return jax.jit(
            jax.grad(lambda h, w: 0.01 * loss(h, w, TARGETS, MASKS["some"], z_loss=Z_LOSS, chunk=3)[0], (0, 1))
        )(HIDDEN, HEAD)

    for found, expected in zip(gradient(chunked_loss), gradient(plain_loss), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def accumulated_in_bfloat16(hidden, head, targets, mask, *, z_loss, chunk):
    """What not to do: the output matrix is cast before the loop, so that its gradient adds up in bfloat16."""
    head = head.astype(jnp.bfloat16)

    @jax.checkpoint
    def one(hidden, targets, mask):
        sums = sums_of_logits(output_logits(hidden, head), targets, mask)
        return sums.cross_entropy + z_loss * sums.z_loss

    def split(x):
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    chunks = split(hidden), split(targets), split(mask)
    return jax.lax.scan(lambda total, chunk: (total + one(*chunk), None), 0.0, chunks)[0], ()


def test_with_bfloat16_and_many_chunks_the_gradient_is_still_float32_s():
    """2,048 chunks, all pushing one way: within 1% of float32, where a sum in bfloat16 is off by more than 10%."""
    length = 4096
    hidden = 1 + 0.5 * RNG.normal(size=(1, length, 8)).astype(np.float32)
    head = 0.1 * RNG.normal(size=(8, 16)).astype(np.float32)
    targets = RNG.integers(0, 4, (1, length))

    def gradient(loss, dtype):
        return jax.jit(
            jax.grad(
                lambda h, w: loss(h, w, targets, np.ones((1, length), bool), z_loss=1e-4, chunk=2)[0] / length, (0, 1)
            )
        )(hidden.astype(dtype), head)

    def error(found, expected):
        return np.linalg.norm(found.astype(np.float32) - expected) / np.linalg.norm(expected)

    by_hidden, by_head = gradient(plain_loss, jnp.float32)
    found = gradient(chunked_loss, jnp.bfloat16)
    assert found[0].dtype == jnp.bfloat16 and found[1].dtype == jnp.float32
    assert error(found[0], by_hidden) < 0.01 and error(found[1], by_head) < 0.01
    assert error(gradient(accumulated_in_bfloat16, jnp.bfloat16)[1], by_head) > 0.1


CONFIG = Config()
CONFIG = dataclasses.replace(
    CONFIG,
    model=ModelConfig(width=8, layers=2, heads=2, vocabulary=101, max_length=32),
    data=dataclasses.replace(CONFIG.data, length=32),
    train=dataclasses.replace(CONFIG.train, loss_chunk=4),
)
WEIGHTS = jax.tree.map(lambda row: jax.ShapeDtypeStruct(row.shape, jnp.float32), read_table(CONFIG.model))
BATCH = jax.ShapeDtypeStruct((4, 33), jnp.int32)


def arrays(jaxpr):
    """Every intermediate of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                yield from arrays(getattr(value, "jaxpr", value))


def largest_with_vocabulary(loss):
    gradient = jax.grad(lambda weights, tokens: loss(weights, tokens)[0])
    found = arrays(jax.make_jaxpr(gradient)(WEIGHTS, BATCH).jaxpr)
    return max(aval.size for aval in found if CONFIG.model.vocabulary in aval.shape)


def full_loss(weights, tokens):
    logits = Transformer(CONFIG.model).apply({"params": weights}, tokens[:, :-1])
    return jnp.sum(jax.nn.logsumexp(logits, axis=-1)), ()


def test_training_never_holds_the_logits_of_a_batch():
    batch, length, vocabulary, width = 4, 32, CONFIG.model.vocabulary, CONFIG.model.width

    def chunked(weights, tokens):
        return loss_sums(set_up(CONFIG), weights, tokens)

    assert largest_with_vocabulary(chunked) == max(vocabulary * width, batch * CONFIG.train.loss_chunk * vocabulary)
    assert largest_with_vocabulary(full_loss) == batch * length * vocabulary


def test_the_loss_of_a_batch_counts_valid_rows_and_keeps_to_documents():
    """Against the model and the plain loss, document by document."""
    rng = np.random.default_rng(3)
    weights = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), WEIGHTS)
    end, starts = 7, [0, 13, 32]
    tokens = rng.integers(8, 101, (2, 33)).astype(np.int32)
    tokens[:, 12] = end
    masked = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, mask_documents=True))
    model, setup = Transformer(masked.model), set_up(masked, end)
    total, (sums, _) = jax.jit(lambda w, t, v: loss_sums(setup, w, t, v))(weights, tokens, np.array([True, False]))
    expected = 0.0
    for start, stop in itertools.pairwise(starts):
        # Rotary embedding is relative, so that a document alone is what it is in the middle of a record.
        logits = np.asarray(model.apply({"params": weights}, tokens[:1, start:stop]), np.float64)[0]
        log_z = logsumexp(logits, -1)
        target = logits[np.arange(stop - start), tokens[0, start + 1 : stop + 1]]
        expected += np.sum(log_z - target + masked.train.z_loss * log_z**2)
    assert sums.targets == 32
    np.testing.assert_allclose(total, expected, rtol=1e-4)
