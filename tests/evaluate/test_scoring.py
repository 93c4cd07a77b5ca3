"""Scores of many sequences at once are those of each by itself, in float64."""

import functools

import jax
import numpy as np
import pytest

from jaxstab.config import UserError
from jaxstab.data import segment_ids
from jaxstab.evaluate import scoring
from jaxstab.evaluate.scoring import Request, batches, read_once, score
from tests.evaluate.conftest import bytes_model


@functools.cache
def whole_pass(model):
    return jax.jit(model.apply)


def logits_of(lm, tokens):
    """The logits after each of some tokens, float64 `[T, V]`, by a pass over them alone."""
    inputs = np.zeros((1, lm.max_length), np.int32)
    inputs[0, : len(tokens)] = tokens
    segments = segment_ids(inputs, lm.tokenizer.end) if lm.model.config.mask_documents else None
    return np.float64(whole_pass(lm.model)({"params": lm.weights}, inputs, segments))[0, : len(tokens)]


def alone(lm, request):
    """The score of one request by itself."""
    tokens, count = [*request.context, *request.continuation][-(lm.max_length + 1) :], len(request.continuation)
    logits, targets = logits_of(lm, tokens[:-1])[-count:], np.array(tokens[-count:])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_p[np.arange(count), targets].sum(), bool((logits.argmax(-1) == targets).all())


def requests_of(lm):
    """Of every length, some of them greedy, some too long, and some that differ in their last token alone."""
    dice = np.random.default_rng(0)
    shapes = [(1, 1), (3, 1), (3, 9), (20, 15), (1, 40), (60, 2), (100, 20), (31, 1), (32, 1), (33, 1), (1, 48)]
    requests = [Request(*(dice.integers(0, 257, size).tolist() for size in shape)) for shape in shapes]
    requests += [Request(requests[2].context, [*requests[2].continuation[:-1], last]) for last in (5, 6, 5)]
    for context in ([9], [1, 2, 3], dice.integers(0, 257, 40).tolist()):
        likeliest = []
        for _ in range(3):
            likeliest.append(int(logits_of(lm, [*context, *likeliest])[-1].argmax()))
        requests += [Request(context, likeliest), Request(context, likeliest[:1]), Request(context, [*likeliest, 0])]
    return requests


@pytest.mark.parametrize("changes", [{}, {"mask_documents": True, "logits_softcap": 2.0}], ids=["plain", "documents"])
def test_scores_are_those_of_each_request_alone(changes, monkeypatch):
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 4096)  # so that places are scored in several chunks
    lm = bytes_model(**changes)
    requests = requests_of(lm)
    scores = score(lm, requests)
    for request, given in zip(requests, scores, strict=True):
        expected, is_greedy = alone(lm, request)
        assert given.log_likelihood == pytest.approx(expected, rel=2e-5)
        assert given.is_greedy == is_greedy
    assert sum(each.is_greedy for each in scores) >= 6


def test_answers_that_differ_in_their_last_token_are_read_once(lm):
    question = list(range(30))
    requests = [Request(question, [7, last]) for last in (1, 2, 1)] + [Request([*question, 7], [3])]
    readings = read_once(requests, lm.max_length)
    assert [(reading.scored, reading.lasts) for reading in readings] == [(2, {1: [0, 2], 2: [1]}), (1, {3: [3]})]


def test_a_few_shapes_hold_every_sequence_once(lm):
    requests = [Request(range(1, 2 + n), range(1 + n % 20)) for n in range(300)]
    readings = read_once(requests, lm.max_length)
    shaped = batches(lm, readings)
    shapes = {shape for shape, _ in shaped}
    assert len(shapes) <= 6
    assert sum(len(rows) for _, rows in shaped) == len(readings) == 300
    for (rows, length, places, lasts), each in shaped:
        assert rows % lm.data_parallel == 0 and len(each) <= rows and length <= lm.max_length
        assert all(len(reading.tokens) <= length and reading.scored <= places for reading in each)
        assert all(len(reading.lasts) <= lasts for reading in each)


def test_a_continuation_that_no_pass_holds_is_refused(lm):
    with pytest.raises(UserError, match="a continuation of 49 tokens is longer"):
        score(lm, [Request([1], [2] * 49)])
