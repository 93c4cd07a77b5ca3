"""Causal attention in chunks of queries, which keeps no T x S array for its backward pass.

Shapes: B batch, T queries, C queries of a chunk, S keys, H query heads, G key-value heads, R = H/G, K head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jaxstab.numerics import widened

MOST_CHUNKS = 8  # each is code of its own; 8 leave 1/16 of the arithmetic above the diagonal
LEAST_CHUNK = 64


def chunked_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    segments_BT: Int[Array, "B T"] | None,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B T H"]]:
    """Causal attention whose products are over the keys that a chunk of queries can see, its softmax in float32.

    The backward pass computes the probabilities again from the logarithms of their normalizers (Dao et al. 2022,
    arXiv:2205.14135, algorithm 4; without tiling over keys).

    Returns:
      The output, and the logarithms of the normalizers, float32.
    """
    q_BGRTK, k_BGSK, v_BGSK = by_group(q_BTHK, k_BSGK, v_BSGK)
    return by_token(*_attention(q_BGRTK, k_BGSK, v_BGSK, Places(segments_BT, segments_BT, None)))


def by_group(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array) -> tuple[Array, Array, Array]:
    """Queries, keys and values with their heads in front: `[B, G, R, T, K]` and `[B, G, S, K]`."""
    batch, length, _, size = q_BTHK.shape
    q_BGRTK = jnp.transpose(q_BTHK.reshape(batch, length, k_BSGK.shape[2], -1, size), (0, 2, 3, 1, 4))
    return q_BGRTK, jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGK, 1, 2)


def by_token(out_BGRTK: Array, log_z_BGRT1: Array) -> tuple[Array, Array]:
    """An output and its normalizers with their heads behind: `[B, T, H, K]` and `[B, T, H]`."""
    out_BTGRK, log_z_BTGR1 = (jnp.transpose(x, (0, 3, 1, 2, 4)) for x in (out_BGRTK, log_z_BGRT1))
    batch, length, *_, size = out_BTGRK.shape
    return out_BTGRK.reshape(batch, length, -1, size), log_z_BTGR1.reshape(batch, length, -1)


def _chunks(length: int) -> Iterator[slice]:
    """The queries of each chunk; it can see the keys up to its end."""
    size = max(LEAST_CHUNK, -(-length // MOST_CHUNKS))
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _product(subscripts: str, *operands: Array) -> Array:
    """An einsum that accumulates, and is given, in float32 (or float64)."""
    return jnp.einsum(subscripts, *operands, preferred_element_type=jnp.promote_types(operands[0].dtype, jnp.float32))


class Places(NamedTuple):
    """Where queries stand among keys.

    Attributes:
      queries: document numbers of the queries; None where attention crosses documents.
      keys: those of the keys.
      first: the position of the first query, traced; None where queries and keys are the same tokens, so that a chunk
        of queries needs no key after its end.
    """

    queries: Int[Array, "B T"] | None
    keys: Int[Array, "B S"] | None
    first: Int[Array, ""] | None

    def visible(self, chunk: slice) -> slice:
        """The keys that a chunk of queries may see."""
        return slice(chunk.stop if self.first is None else None)


def _logits(q_BGRCK: Array, k_BGSK: Array, places: Places, chunk: slice) -> Float[Array, "B G R C S"]:
    """⟨q, k⟩/√K of a chunk of queries and the keys visible to it, -inf where a query may not see a key."""
    z_BGRCS = _product("bgrck,bgsk->bgrcs", q_BGRCK, k_BGSK) / math.sqrt(q_BGRCK.shape[-1])
    positions = jnp.arange(chunk.start, chunk.stop) + (0 if places.first is None else places.first)
    mask = positions[:, None] >= jnp.arange(k_BGSK.shape[2])
    if places.queries is not None and places.keys is not None:
        keys_BS = places.keys[:, places.visible(chunk)]
        mask &= (places.queries[:, chunk, None] == keys_BS[:, None])[:, None, None]
    # A mask that hangs on z: a scan over layers would make one of z's shape once for all, and keep it.
    z_BGRCS, mask = jax.lax.optimization_barrier((z_BGRCS, mask))
    return jnp.where(mask, z_BGRCS, -jnp.inf)


@jax.custom_vjp
def _attention(q_BGRTK: Array, k_BGSK: Array, v_BGSK: Array, places: Places) -> tuple[Array, Array]:
    return forward(q_BGRTK, k_BGSK, v_BGSK, places)[0]


def forward(q_BGRTK: Array, k_BGSK: Array, v_BGSK: Array, places: Places) -> tuple[tuple[Array, Array], tuple]:
    """The output and the logarithms of its normalizers, and what `backward` takes."""
    outs, log_zs = [], []
    for chunk in _chunks(q_BGRTK.shape[3]):
        keys = places.visible(chunk)
        z_BGRCS = _logits(q_BGRTK[:, :, :, chunk], k_BGSK[:, :, keys], places, chunk)
        highest_BGRC1 = jnp.max(z_BGRCS, axis=-1, keepdims=True)
        p_BGRCS = jnp.exp(z_BGRCS - highest_BGRC1)
        sum_BGRC1 = jnp.sum(p_BGRCS, axis=-1, keepdims=True)
        out_BGRCK = _product("bgrcs,bgsk->bgrck", p_BGRCS.astype(v_BGSK.dtype), v_BGSK[:, :, keys])
        outs.append((out_BGRCK / sum_BGRC1).astype(v_BGSK.dtype))
        log_zs.append(highest_BGRC1 + jnp.log(sum_BGRC1))
    out_BGRTK = checkpoint_name(jnp.concatenate(outs, axis=3), "attention")
    log_z_BGRT1 = checkpoint_name(jnp.concatenate(log_zs, axis=3), "attention")
    return (out_BGRTK, log_z_BGRT1), (q_BGRTK, k_BGSK, v_BGSK, places, out_BGRTK, log_z_BGRT1)


def backward(residuals: tuple, cotangents: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    """The gradients by queries, keys and values; the last two are sums in float32."""
    d_out_BGRTK, d_log_z_BGRT1 = cotangents
    q_BGRTK, k_BGSK, v_BGSK, places, out_BGRTK, log_z_BGRT1 = residuals
    scale = 1 / math.sqrt(q_BGRTK.shape[-1])
    # Σ_s p dp, which every logit's gradient is less of, is Σ_k out d_out; the gradient of log Σ_s e^z is p.
    mean_BGRT1 = jnp.sum(widened(out_BGRTK) * widened(d_out_BGRTK), axis=-1, keepdims=True) - d_log_z_BGRT1
    d_qs = []
    d_k_BGSK, d_v_BGSK = (jnp.zeros_like(widened(x)) for x in (k_BGSK, v_BGSK))
    for chunk in _chunks(q_BGRTK.shape[3]):
        of_chunk, keys = (..., chunk, slice(None)), (..., places.visible(chunk), slice(None))
        q_BGRCK, d_out_BGRCK = q_BGRTK[of_chunk], d_out_BGRTK[of_chunk]
        p_BGRCS = jnp.exp(_logits(q_BGRCK, k_BGSK[keys], places, chunk) - log_z_BGRT1[of_chunk])
        d_p_BGRCS = _product("bgrck,bgsk->bgrcs", d_out_BGRCK, v_BGSK[keys])
        d_z_BGRCS = (scale * p_BGRCS * (d_p_BGRCS - mean_BGRT1[of_chunk])).astype(q_BGRTK.dtype)
        p_BGRCS = p_BGRCS.astype(v_BGSK.dtype)
        d_qs.append(_product("bgrcs,bgsk->bgrck", d_z_BGRCS, k_BGSK[keys]).astype(q_BGRTK.dtype))
        d_k_BGSK = d_k_BGSK.at[keys].add(_product("bgrcs,bgrck->bgsk", d_z_BGRCS, q_BGRCK))
        d_v_BGSK = d_v_BGSK.at[keys].add(_product("bgrcs,bgrck->bgsk", p_BGRCS, d_out_BGRCK))
    return jnp.concatenate(d_qs, axis=3), d_k_BGSK, d_v_BGSK


def _backward(residuals: tuple, cotangents: tuple[Array, Array]) -> tuple[Array, Array, Array, None]:
    _, k_BGSK, v_BGSK, *_ = residuals
    d_q_BGRTK, d_k_BGSK, d_v_BGSK = backward(residuals, cotangents)
    return d_q_BGRTK, d_k_BGSK.astype(k_BGSK.dtype), d_v_BGSK.astype(v_BGSK.dtype), None


_attention.defvjp(forward, _backward)
