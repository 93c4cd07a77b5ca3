"""How the next token is chosen."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstab.config import Options, Range, option


@dataclasses.dataclass(frozen=True)
class Sampling(Options):
    """How the next token is chosen, by the names and in the order of Hugging Face's `generate`."""

    temperature: float = option(0.0, "Of the softmax that tokens are drawn from; 0 takes the likeliest.", Range(0))
    top_k: int = option(0, "Draws among so many of the likeliest tokens; 0 is off.", Range(0))
    top_p: float = option(
        1.0,
        "Then among the likeliest that reach this probability together (Holtzman et al. 2020).",
        Range(above=0, most=1),
    )


def choose(sampling: Sampling, logits_BV: Float[Array, "B V"], key: jax.Array) -> Int[Array, " B"]:
    """The next token of every row, int32."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = truncated(logits_BV / sampling.temperature, sampling.top_k, sampling.top_p)
    return jax.random.categorical(key, logits_BV).astype(jnp.int32)


def truncated(logits_BV: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """The logits, with -inf where `top_k` or `top_p` leaves a token out; tokens as likely as the last one stay."""
    if top_k:
        least_B1 = jax.lax.top_k(logits_BV, min(top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        p_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
        least_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    return logits_BV
