"""Text from a model."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxstab.model.loss import output_logits
from jaxstab.model.transformer import Transformer


@functools.partial(jax.jit, static_argnums=(0, 4))
def generate(
    model: Transformer, weights: Any, prompt_P: Int[Array, " P"], key: jax.Array, length: int, temperature: float = 0.0
) -> Int[Array, " P+length"]:
    """Continues a prompt by `length` tokens, each from a forward pass over the whole window (no cache).

    Args:
      model: called as `model.apply({"params": weights}, tokens, method="hidden")`.
      weights: effective weights.
      prompt_P: at least one token.
      key: of the sampling.
      length: tokens to add; with the prompt at most what the model's positions allow.
      temperature: 0 takes the likeliest token.

    Returns:
      The prompt and its continuation.
    """
    start = prompt_P.shape[0]
    window = jnp.zeros((1, start + length), jnp.int32).at[0, :start].set(prompt_P)

    def add(position: Array, window: Array) -> Array:
        hidden_BTD = model.apply({"params": weights}, window, method="hidden")
        hidden_D = jax.lax.dynamic_index_in_dim(hidden_BTD[0], position - 1, keepdims=False)
        logits_V = output_logits(hidden_D, weights["lm_head"]["kernel"], model.config.logits_softcap)
        sampled = jax.random.categorical(jax.random.fold_in(key, position), logits_V / jnp.maximum(temperature, 1e-6))
        token = jnp.where(temperature > 0, sampled, jnp.argmax(logits_V))
        return window.at[0, position].set(token.astype(jnp.int32))

    return jax.lax.fori_loop(start, start + length, add, window)[0]
