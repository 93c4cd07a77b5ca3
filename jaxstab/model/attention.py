"""Causal attention: a fused kernel, or one whose logits can be capped and measured.

Shapes: B batch, T query length, S key length, H query heads, G key-value heads, R = H/G, K head size.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstab.model.attention_chunked import chunked_attention
from jaxstab.model.attention_sequence import is_split_sequence, sequence_attention
from jaxstab.model.attention_splash import is_splash_shape, splash_attention
from jaxstab.numerics import mean_over_rows


def fused_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    segments_BT: Int[Array, "B T"] | None,
    implementation: str,
    sinks_H: Float[Array, " H"] | None = None,
) -> Float[Array, "B T H K"]:
    """Attention by splash, where it takes the shape, `chunked`, which gathers keys and values where a mesh splits the
    sequence, or a kernel of `jax.nn.dot_product_attention`.

    The softmax of each is in float32. Sinks take `chunked`, or under `xla` the reference.
    """
    chunked = sequence_attention if is_split_sequence(q_BTHK, k_BSGK) else chunked_attention
    if sinks_H is not None and implementation == "xla":
        return reference_attention(q_BTHK, k_BSGK, v_BSGK, segments_BT, sinks_H=sinks_H)[0]
    if sinks_H is not None:
        return with_sinks(*chunked(q_BTHK, k_BSGK, v_BSGK, segments_BT), sinks_H)
    if implementation == "splash" and is_splash_shape(q_BTHK, k_BSGK):
        return splash_attention(q_BTHK, k_BSGK, v_BSGK, segments_BT)
    if implementation in ("chunked", "splash"):
        return chunked(q_BTHK, k_BSGK, v_BSGK, segments_BT)[0]
    mask = None if segments_BT is None else (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])
    kernel = cast(Literal["xla", "cudnn"], implementation)
    return jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, mask=mask, is_causal=True, implementation=kernel)


def with_sinks(
    out_BTHK: Float[Array, "B T H K"], log_z_BTH: Float[Array, "B T H"], sinks_H: Float[Array, " H"]
) -> Float[Array, "B T H K"]:
    """What attention puts out where a sink, a logit s without a value, is in each head's softmax too.

    Σ_j e^z_j v_j / (Σ_j e^z_j + e^s) = out · sigmoid(log Σ_j e^z_j - s); source: gpt-oss (openai/gpt-oss).

    Args:
      out_BTHK, log_z_BTH: attention without sinks, and the logarithm of its normalizer, float32.
      sinks_H: float32.
    """
    return out_BTHK * jax.nn.sigmoid(log_z_BTH - sinks_H)[..., None].astype(out_BTHK.dtype)


def attention_logits(
    q_BTHK: Float[Array, "B T H K"], k_BSGK: Float[Array, "B S G K"], softcap: float = 0.0
) -> Float[Array, "B H T S"]:
    """⟨q, k⟩/√K in float32, before any mask; with `softcap` c as c tanh(z/c) (Gemma 2)."""
    batch, length, heads, size = q_BTHK.shape
    q_BTGRK = q_BTHK.reshape(batch, length, k_BSGK.shape[2], -1, size)
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    z_BGRTS = jnp.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK, preferred_element_type=dtype) / math.sqrt(size)
    z_BHTS = z_BGRTS.reshape(batch, heads, length, -1)
    return softcap * jnp.tanh(z_BHTS / softcap) if softcap else z_BHTS


def causal_mask(length: int, segments_BT: Int[Array, "B T"] | None) -> Array:
    """Which keys a query may see: `[1 or B, 1, T, S]`."""
    causal_TS = jnp.tril(jnp.ones((length, length), bool))
    if segments_BT is None:
        return causal_TS[None, None]
    return causal_TS & (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])


def reference_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    segments_BT: Int[Array, "B T"] | None,
    softcap: float = 0.0,
    sinks_H: Float[Array, " H"] | None = None,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B H T S"]]:
    """Attention with its logits in memory, for what a fused kernel doesn't offer.

    Returns:
      The output, and the logits in float32, -inf where a query may not see a key.
    """
    return visible_attention(q_BTHK, k_BSGK, v_BSGK, causal_mask(q_BTHK.shape[1], segments_BT), softcap, sinks_H)


def visible_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    visible_BHTS: Bool[Array, "*B *H T S"],
    softcap: float = 0.0,
    sinks_H: Float[Array, " H"] | None = None,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B H T S"]]:
    """As `reference_attention`, of queries that see the keys that they are told, at least one each."""
    z_BHTS = jnp.where(visible_BHTS, attention_logits(q_BTHK, k_BSGK, softcap), -jnp.inf)
    p_BHTS = jax.nn.softmax(z_BHTS, axis=-1).astype(v_BSGK.dtype)
    v_BSHK = jnp.repeat(v_BSGK, q_BTHK.shape[2] // v_BSGK.shape[2], axis=2)
    out_BTHK = jnp.einsum("bhts,bshk->bthk", p_BHTS, v_BSHK)
    if sinks_H is None:
        return out_BTHK, z_BHTS
    log_z_BTH = jax.nn.logsumexp(z_BHTS, axis=-1).swapaxes(1, 2)
    return with_sinks(out_BTHK, log_z_BTH, sinks_H), z_BHTS


def attention_entropy(z_BHTS: Float[Array, "B H T S"]) -> Float[Array, " H"]:
    """-Σ_j p_j log p_j in nats, the mean over queries and sequences, of logits that are -inf where masked.

    Source: Zhai et al. 2023 (arXiv:2303.06296); their code has log(p + 1e-6).
    """
    log_p_BHTS = jax.nn.log_softmax(z_BHTS, axis=-1)
    p_BHTS = jnp.exp(log_p_BHTS)
    entropy_BHT = -jnp.sum(jnp.where(p_BHTS > 0, p_BHTS * log_p_BHTS, 0.0), axis=-1)
    return mean_over_rows(entropy_BHT, axes=(2,))
