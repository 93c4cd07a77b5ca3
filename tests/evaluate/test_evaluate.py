"""Perplexity over records and generated text."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.data import segment_ids
from jaxstab.evaluate import Sampling, evaluate, generate, padded
from jaxstab.evaluate.generate import GREEDY
from jaxstab.initialize import draw, he, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EmbeddingConfig
from jaxstab.model.loss import LossSums
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.train.config import Config
from jaxstab.train.objective import loss_sums
from jaxstab.train.setup import set_up

UNIT = EmbeddingConfig(method="unit")
VOCABULARY, LENGTH = 13, 8
MODEL = ModelConfig(width=8, layers=2, heads=2, vocabulary=VOCABULARY, max_length=24, embedding=UNIT, remat="none")
CONFIG = dataclasses.replace(Config(), model=MODEL, data=dataclasses.replace(Config().data, length=LENGTH))
WEIGHTS = jax.tree.map(lambda leaf: 3 * leaf, draw(jax.random.key(0), scaled(read_table(MODEL), he())))


class Records:
    """What `evaluate` asks of a split."""

    def __init__(self, count):
        self.tokens = np.random.default_rng(0).integers(0, VOCABULARY, (count, LENGTH + 1)).astype(np.int32)
        self.read_rows = []

    def __len__(self):
        return len(self.tokens)

    def read(self, indices):
        self.read_rows.append(list(map(int, indices)))
        return self.tokens[indices]


@jax.jit
def model_sums(weights, tokens, valid):
    return loss_sums(set_up(CONFIG), weights, tokens, valid)[1][0]


def bigram_sums(weights, tokens, valid):
    """A bigram table's cross-entropy, in NumPy."""
    losses = -np.log(weights)[tokens[:, :-1], tokens[:, 1:]][valid]
    return LossSums(np.float32(losses.sum()), *map(np.float32, (0, 0, losses.size)))


@functools.cache
def bigram():
    table = np.random.default_rng(1).random((VOCABULARY, VOCABULARY))
    return table / table.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("count", "batch", "batches", "used"), [(7, 3, 0, 7), (6, 3, 0, 6), (2, 4, 0, 2), (9, 2, 3, 6)]
)
def test_perplexity_is_that_of_every_record_once(count, batch, batches, used):
    split = Records(count)
    found = evaluate(bigram_sums, bigram(), split, batch, batches)
    tokens = split.tokens[:used]
    loss = -np.log(bigram())[tokens[:, :-1], tokens[:, 1:]].mean()
    assert found == pytest.approx({"loss": loss, "perplexity": np.exp(loss)}, rel=1e-6)
    assert all(len(rows) == batch for rows in split.read_rows)  # one shape, one program
    assert sorted({row for rows in split.read_rows for row in rows}) == list(range(used))


def test_the_padded_last_batch_of_a_model_counts_its_records_only():
    split = Records(6)
    padded = evaluate(model_sums, WEIGHTS, split, 4)
    whole = model_sums(WEIGHTS, split.tokens, np.ones(6, bool))
    assert padded["loss"] == pytest.approx(float(whole.cross_entropy / whole.targets), rel=1e-5)
    apply = jax.jit(lambda tokens: Transformer(MODEL).apply({"params": WEIGHTS}, tokens))
    logits = np.asarray(apply(split.tokens[:, :-1]), np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    likelihoods = np.take_along_axis(probabilities, split.tokens[:, 1:, None], -1)
    assert padded["perplexity"] == pytest.approx(np.exp(-np.log(likelihoods).mean()), rel=1e-5)
    assert model_sums._cache_size() == 2  # the batch of four, and this test's own of six


def test_a_loss_beyond_float64_s_exponential_is_still_a_number():
    def hopeless(weights, tokens, valid):
        return LossSums(np.float32(1e6), *map(np.float32, (0, 0, 1)))

    found = evaluate(hopeless, None, Records(1), 1)
    assert found["loss"] == 1e6 and np.isfinite(found["perplexity"])


PROMPT = np.array([3, 1, 4], np.int32)


def continuation(seed, length, sampling=GREEDY, model=MODEL, prompt=PROMPT, **options):
    (tokens,) = generate(
        Transformer(model), WEIGHTS, *padded([prompt]), jax.random.key(seed), length, sampling, **options
    )
    return tokens


def test_greedy_text_is_the_argmax_of_each_prefix():
    tokens, apply = PROMPT.tolist(), jax.jit(lambda tokens: Transformer(MODEL).apply({"params": WEIGHTS}, tokens))
    for _ in range(5):
        padding = [0] * (12 - len(tokens))  # one shape; a later token has no say in an earlier position
        logits = apply(np.array([tokens + padding]))
        tokens.append(int(np.argmax(logits[0, len(tokens) - 1])))
    added = continuation(0, 5)
    assert added.dtype == jnp.int32 and [*PROMPT, *added] == tokens
    assert continuation(9, 5).tolist() == added.tolist()


def test_sampled_text_follows_the_key_and_the_softmax():
    prompts = padded([PROMPT] * 4000)

    def sample(temperature):
        key = jax.random.key(0)
        return np.asarray(generate(Transformer(MODEL), WEIGHTS, *prompts, key, 1, Sampling(temperature)))[:, 0]

    logits = np.asarray(jax.jit(Transformer(MODEL).apply)({"params": WEIGHTS}, PROMPT[None]))[0, -1]
    for temperature in (0.7, 5.0):
        drawn = sample(temperature)
        np.testing.assert_array_equal(drawn, sample(temperature))
        expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        frequencies = np.bincount(drawn, minlength=VOCABULARY) / len(drawn)
        np.testing.assert_allclose(frequencies, expected, atol=0.04)  # five standard errors at worst


def test_padded_ids_are_never_sampled():
    for temperature in (0.0, 50.0):
        assert continuation(0, 21, Sampling(temperature), vocabulary=5).max() < 5
    assert continuation(0, 21, Sampling(50.0)).max() >= 5


def test_a_sample_attends_to_its_document_alone_where_training_does():
    end, prompt = 0, np.array([3, 1, 0, 4, 2], np.int32)  # the padding after a prompt is of end tokens, too
    masked = dataclasses.replace(MODEL, mask_documents=True)
    apply = jax.jit(lambda tokens, segments: Transformer(masked).apply({"params": WEIGHTS}, tokens, segments))
    tokens = prompt.tolist()
    for _ in range(6):
        padded = np.array([tokens + [7] * (12 - len(tokens))])  # one shape; a later token has no say in earlier ones
        logits = apply(padded, segment_ids(padded, end))
        tokens.append(int(np.argmax(logits[0, len(tokens) - 1])))
    assert [*prompt, *continuation(0, 6, model=masked, prompt=prompt, end=end)] == tokens
    assert [*prompt, *continuation(0, 6, prompt=prompt)] != tokens


def test_an_evaluation_can_be_left_between_two_batches():
    def leave():
        if len(evaluated) == 2:
            raise KeyboardInterrupt

    def counted(*arguments):
        evaluated.append(arguments)
        return bigram_sums(*arguments)

    evaluated = []
    with pytest.raises(KeyboardInterrupt):
        evaluate(counted, bigram(), Records(9), 2, between=leave)
    assert len(evaluated) == 2
