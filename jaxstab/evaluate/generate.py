"""Text from a model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxstab.data import segment_ids
from jaxstab.evaluate.sampling import Sampling, choose
from jaxstab.model.cache import decode, prefill
from jaxstab.model.loss import output_logits
from jaxstab.model.transformer import Transformer

GREEDY = Sampling()


def padded(
    prompts: Sequence[Sequence[int] | np.ndarray], multiple: int = 1
) -> tuple[Int[np.ndarray, "B P"], Int[np.ndarray, " B"]]:
    """Prompts as one array, padded at their ends to a multiple of some length, and their lengths; int32 both."""
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    prompts_BP = np.zeros((len(prompts), -(-lengths_B.max() // multiple) * multiple), np.int32)
    for row, prompt in zip(prompts_BP, prompts, strict=True):
        row[: len(prompt)] = prompt
    return prompts_BP, lengths_B


@functools.partial(jax.jit, static_argnames=("model", "length", "sampling", "vocabulary", "end", "stop"))
def generate(
    model: Transformer,
    weights: Any,
    prompts_BP: Int[Array, "B P"],
    lengths_B: Int[Array, " B"],
    key: jax.Array,
    length: int,
    sampling: Sampling = GREEDY,
    *,
    vocabulary: int | None = None,
    end: int | None = None,
    stop: int | None = None,
) -> Int[Array, "B length"]:
    """Continues prompts by `length` tokens each, with a cache of keys and values.

    Args:
      model: a Transformer.
      weights: effective weights.
      prompts_BP: prompts of at least one token, padded at their ends.
      lengths_B: how many tokens of each are the prompt; with `length` at most what the model's positions allow.
      key: of the sampling.
      length: tokens to add.
      sampling: how each is chosen.
      vocabulary: tokens are below it; None where the model's own vocabulary has no padding.
      end: the tokenizer's end-of-document id, needed by `model.mask_documents`.
      stop: a token after which a row is complete, and filled up with that token.

    Returns:
      The continuations, int32.
    """
    batch, longest = prompts_BP.shape
    rows_B = jnp.arange(batch)
    is_token_V = jnp.arange(model.config.vocabulary) < (vocabulary or model.config.vocabulary)
    window_BS = jnp.pad(prompts_BP.astype(jnp.int32), ((0, 0), (0, length)))

    def chosen(hidden_BD: Float[Array, "B D"], number: Array | int, complete_B: Array) -> tuple[Array, Array]:
        """The next token of every row, and whether the row is complete with it."""
        logits_BV = output_logits(hidden_BD, weights["lm_head"]["kernel"], model.config.logits_softcap)
        logits_BV = jnp.where(is_token_V, logits_BV, -jnp.inf)
        tokens_B = choose(sampling, logits_BV, jax.random.fold_in(key, number))
        if stop is None:
            return tokens_B, complete_B
        return jnp.where(complete_B, stop, tokens_B), complete_B | (tokens_B == stop)

    def goes_on(carry: Any) -> Array:
        number, *_, complete_B = carry
        return (number < length) & ~jnp.all(complete_B)

    def add(carry: Any) -> Any:
        number, window_BS, cache, complete_B = carry
        places_B = lengths_B + number - 1  # of the tokens chosen last
        hidden_BD, cache = decode(
            model, weights, cache, window_BS[rows_B, places_B], places_B, _segments(model, window_BS, end)
        )
        tokens_B, complete_B = chosen(hidden_BD, number, complete_B)
        return number + 1, window_BS.at[rows_B, places_B + 1].set(tokens_B), cache, complete_B

    hidden_BPD, cache = prefill(model, weights, prompts_BP, longest + length, _segments(model, prompts_BP, end))
    tokens_B, complete_B = chosen(hidden_BPD[rows_B, lengths_B - 1], 0, jnp.zeros(batch, bool))
    window_BS = window_BS.at[rows_B, lengths_B].set(tokens_B)
    number, window_BS, _, _ = jax.lax.while_loop(goes_on, add, (jnp.array(1), window_BS, cache, complete_B))
    added_BN = jnp.take_along_axis(window_BS, lengths_B[:, None] + jnp.arange(length), axis=1)
    return added_BN if stop is None else jnp.where(jnp.arange(length) < number, added_BN, stop)


def _segments(model: Transformer, window_BT: Int[Array, "B T"], end: int | None) -> Int[Array, "B T"] | None:
    """Document numbers; None where attention crosses documents."""
    if not model.config.mask_documents:
        return None
    assert end is not None, "masking documents needs the tokenizer's end-of-document id"
    return segment_ids(window_BT, end)
