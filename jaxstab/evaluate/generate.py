"""Text from a model."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxstab.data import segment_ids
from jaxstab.model.loss import output_logits
from jaxstab.model.transformer import Transformer


@functools.partial(jax.jit, static_argnames=("model", "length", "vocabulary", "end"))
def generate(
    model: Transformer,
    weights: Any,
    prompt_P: Int[Array, " P"],
    key: jax.Array,
    length: int,
    temperature: float | Array = 0.0,
    *,
    vocabulary: int | None = None,
    end: int | None = None,
) -> Int[Array, " P+length"]:
    """Continues a prompt by `length` tokens, each from a forward pass over the whole window (no cache).

    Args:
      model: called as `model.apply({"params": weights}, tokens, segments, method="hidden")`.
      weights: effective weights.
      prompt_P: at least one token.
      key: of the sampling.
      length: tokens to add; with the prompt at most what the model's positions allow.
      temperature: 0 takes the likeliest token.
      vocabulary: tokens are below it; None where the model's own vocabulary has no padding.
      end: the tokenizer's end-of-document id, needed by `model.mask_documents`.

    Returns:
      The prompt and its continuation, int32.
    """
    start = prompt_P.shape[0]
    window_T = jnp.zeros(start + length, jnp.int32).at[:start].set(prompt_P)
    is_token_V = jnp.arange(model.config.vocabulary) < (vocabulary or model.config.vocabulary)

    def add(position: Array, window_T: Array) -> Array:
        # What stands after a position changes neither its hidden vector nor its document.
        segments_BT = _segments(model, window_T[None], end)
        hidden_BTD = model.apply({"params": weights}, window_T[None], segments_BT, method="hidden")
        hidden_D = jax.lax.dynamic_index_in_dim(hidden_BTD[0], position - 1, keepdims=False)
        logits_V = output_logits(hidden_D, weights["lm_head"]["kernel"], model.config.logits_softcap)
        logits_V = jnp.where(is_token_V, logits_V, -jnp.inf)
        sampled = jax.random.categorical(jax.random.fold_in(key, position), logits_V / jnp.maximum(temperature, 1e-6))
        token = jnp.where(temperature > 0, sampled, jnp.argmax(logits_V))
        return window_T.at[position].set(token.astype(jnp.int32))

    return jax.lax.fori_loop(start, start + length, add, window_T)


def _segments(model: Transformer, window_BT: Int[Array, "B T"], end: int | None) -> Int[Array, "B T"] | None:
    """Document numbers; None where attention crosses documents."""
    if not model.config.mask_documents:
        return None
    assert end is not None, "masking documents needs the tokenizer's end-of-document id"
    return segment_ids(window_BT, end)
