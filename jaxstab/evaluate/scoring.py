"""How likely a model thinks that texts go on as they do: many sequences of any length, with a few compiled shapes.

Requests that differ in their last token alone, such as a question's "yes" and "no", are read once. Sequences stand
side by side with others of about their length, padded at their ends to a power of two, so that a whole benchmark takes
a dozen programs at most.

Shapes: B sequences, T tokens that are read, C places that are scored, K last tokens, D width, V vocabulary.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxstab import scale
from jaxstab.config import UserError
from jaxstab.data import segment_ids
from jaxstab.evaluate.language_model import LanguageModel
from jaxstab.model.loss import output_logits
from jaxstab.model.transformer import Transformer

TOKENS_AT_ONCE = 8192  # of a batch
LOGITS_AT_ONCE = 1 << 25  # numbers, 128 MiB of float32
SHORTEST = 32  # tokens that a sequence is padded to at least
FEW = 16  # tokens that most answers have


class Request(NamedTuple):
    """A continuation that is scored, and the context before it, of at least one token each."""

    context: Sequence[int]
    continuation: Sequence[int]


class Score(NamedTuple):
    """The logarithm of a continuation's probability, in nats, and whether each of its tokens is the likeliest."""

    log_likelihood: float
    is_greedy: bool


class Reading(NamedTuple):
    """What is read at once: all tokens but the last, and the last ones with the requests that each belongs to."""

    tokens: tuple[int, ...]
    scored: int  # tokens of the continuation, the last included
    lasts: dict[int, list[int]]


class Batch(NamedTuple):
    """Readings as arrays, padded to one shape."""

    tokens_BT: Int[np.ndarray, "B T"]
    lengths_B: Int[np.ndarray, " B"]
    scored_B: Int[np.ndarray, " B"]
    lasts_BK: Int[np.ndarray, "B K"]


Shown = Callable[[Sequence[Any]], Iterable[Any]]  # shows how far a loop over these is


def score(lm: LanguageModel, requests: Sequence[Request], shown: Shown = iter) -> list[Score]:
    """Scores requests. Probabilities are by a softmax over the model's vocabulary, in float32.

    Args:
      lm: the model.
      requests: in any order. A context that is too long for the model loses its beginning.
      shown: shows how far the loop over batches is.

    Returns:
      A score for every request, in their order.

    Raises:
      UserError: a continuation is longer than the model's positions allow.
    """
    program, rows = scale.on_mesh(lm.mesh, scores_of), scale.batch_sharding(lm.mesh)
    of_vector = NamedSharding(lm.mesh, PartitionSpec(rows.spec[0]))
    scores: dict[int, Score] = {}
    for shape, readings in shown(batches(lm, read_once(requests, lm.max_length))):
        arrays = jax.device_put(tuple(_padded(readings, *shape)), (rows, of_vector, of_vector, rows))
        results = scale.fetch(program(lm.model, lm.weights, *arrays, places=shape[2], end=lm.tokenizer.end))
        for reading, *row in zip(readings, *results, strict=False):  # rows after these are padding
            for requests_of_one, total, is_greedy in zip(reading.lasts.values(), *row, strict=False):
                scores |= dict.fromkeys(requests_of_one, Score(float(total), bool(is_greedy)))
    return [scores[number] for number in range(len(requests))]


def requests_of(lm: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """Contexts and continuations as tokens: those of the two texts together, cut where the context's own end.

    Spaces at a context's end go to the continuation, whose tokens begin with them. An empty context is the token that
    begins a document.
    """
    texts = dict.fromkeys(
        text for context, continuation in pairs for text in (context.rstrip(), context + continuation)
    )
    ids = dict(zip(texts, (row.tolist() for row in lm.tokenizer.encode(list(texts))), strict=True))
    requests = []
    for context, continuation in pairs:
        before, whole = ids[context.rstrip()], ids[context + continuation]
        cut = min(len(before), len(whole) - 1)  # where the continuation has melted into the context's last token
        requests.append(Request(before[:cut] or [lm.tokenizer.end], whole[cut:]))
    return requests


def read_once(requests: Sequence[Request], max_length: int) -> list[Reading]:
    """Gathers the requests that differ in their last token alone."""
    readings: dict[Any, Reading] = {}
    for number, (context, continuation) in enumerate(requests):
        if len(continuation) > max_length:
            raise UserError(
                f"a continuation of {len(continuation)} tokens is longer than model.max_length={max_length}"
            )
        *tokens, last = [*context, *continuation][-(max_length + 1) :]
        key = tuple(tokens), len(continuation)
        readings.setdefault(key, Reading(*key, {})).lasts.setdefault(last, []).append(number)
    return list(readings.values())


Shape = tuple[int, int, int, int]  # B, T, C, K


def batches(lm: LanguageModel, readings: Sequence[Reading]) -> list[tuple[Shape, list[Reading]]]:
    """Readings of one shape together, the largest shapes first: what doesn't fit into memory fails at once."""

    def shape_of(reading: Reading) -> Shape:
        length = min(_power_of_two(max(len(reading.tokens), SHORTEST)), lm.max_length)
        rows = max(1, TOKENS_AT_ONCE // length // lm.data_parallel) * lm.data_parallel
        places = next(count for count in (1, FEW, _power_of_two(length)) if reading.scored <= count)
        return rows, length, places, _power_of_two(len(reading.lasts))

    ordered = sorted(readings, key=lambda reading: shape_of(reading)[1:], reverse=True)
    by_shape = ((shape, list(of_shape)) for shape, of_shape in itertools.groupby(ordered, shape_of))
    return [(shape, each[i : i + shape[0]]) for shape, each in by_shape for i in range(0, len(each), shape[0])]


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _padded(readings: Sequence[Reading], rows: int, length: int, places: int, lasts: int) -> Batch:
    batch = Batch(
        np.zeros((rows, length), np.int32),
        np.ones(rows, np.int32),
        np.ones(rows, np.int32),
        np.zeros((rows, lasts), np.int32),
    )
    for row, reading in enumerate(readings):
        batch.tokens_BT[row, : len(reading.tokens)] = reading.tokens
        batch.lengths_B[row], batch.scored_B[row] = len(reading.tokens), reading.scored
        batch.lasts_BK[row, : len(reading.lasts)] = list(reading.lasts)
    return batch


@functools.partial(jax.jit, static_argnames=("model", "places", "end"))
def scores_of(
    model: Transformer,
    weights: Any,
    tokens_BT: Int[Array, "B T"],
    lengths_B: Int[Array, " B"],
    scored_B: Int[Array, " B"],
    lasts_BK: Int[Array, "B K"],
    *,
    places: int,
    end: int,
) -> tuple[Float[Array, "B K"], Bool[Array, "B K"]]:
    """The log-likelihoods of continuations that end in each of some last tokens, and whether they are greedy.

    Args:
      model: a Transformer.
      weights: effective weights.
      tokens_BT: sequences without their last tokens, padded at their ends.
      lengths_B: their lengths.
      scored_B: how many of their tokens are scored, the last included.
      lasts_BK: the last tokens.
      places: C, at least the largest of `scored_B`.
      end: the tokenizer's end-of-document id, where attention stays inside documents.
    """
    segments_BT = segment_ids(tokens_BT, end) if model.config.mask_documents else None
    hidden_BTD: Any = model.apply({"params": weights}, tokens_BT, segments_BT, method="hidden")
    logits_of = functools.partial(
        output_logits, lm_head=weights["lm_head"]["kernel"], softcap=model.config.logits_softcap
    )
    back_C = jnp.arange(places)  # 0 is the place that the last token is predicted from
    places_BC = jnp.maximum(lengths_B[:, None] - 1 - back_C, 0)
    hidden_BCD = jnp.take_along_axis(hidden_BTD, places_BC[..., None], axis=1)
    logits_BV = logits_of(hidden_BCD[:, 0])
    totals_BK = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), lasts_BK, axis=1)
    are_greedy_BK = jnp.argmax(logits_BV, axis=-1)[:, None] == lasts_BK
    if places == 1:
        return totals_BK, are_greedy_BK
    targets_BC = jnp.take_along_axis(tokens_BT, places_BC + 1, axis=1, mode="clip")
    log_p_BC, are_likeliest_BC = _by_chunks(logits_of, hidden_BCD, targets_BC, model.config.vocabulary)
    is_scored_BC = (back_C > 0) & (back_C < scored_B[:, None])
    totals_B = jnp.sum(log_p_BC, axis=1, where=is_scored_BC)
    all_likeliest_B = jnp.all(are_likeliest_BC | ~is_scored_BC, axis=1)
    return totals_BK + totals_B[:, None], are_greedy_BK & all_likeliest_B[:, None]


def _by_chunks(logits_of: Callable[[Array], Array], hidden_BCD: Array, targets_BC: Array, vocabulary: int) -> Any:
    """Log-probabilities of targets and whether they are likeliest, with the logits of a few places in memory."""
    rows, places, _ = hidden_BCD.shape
    chunks = min(places, _power_of_two(-(-rows * places * vocabulary // LOGITS_AT_ONCE)))

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(rows, chunks, places // chunks, *x.shape[2:]), 1, 0)

    def of_chunk(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        logits_BcV, targets_Bc = logits_of(chunk[0]), chunk[1]
        log_p_BcV = jax.nn.log_softmax(logits_BcV)
        log_p_Bc = jnp.take_along_axis(log_p_BcV, targets_Bc[..., None], axis=-1)[..., 0]
        return log_p_Bc, jnp.argmax(logits_BcV, axis=-1) == targets_Bc

    results = jax.lax.map(of_chunk, (split(hidden_BCD), split(targets_BC)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, places), results)
