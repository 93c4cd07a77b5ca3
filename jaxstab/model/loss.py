"""Cross-entropy and z-loss in chunks: the logits of a whole batch are never in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LossSums(NamedTuple):
    """Sums over the unmasked targets, in float32; divide by `targets` for means."""

    cross_entropy: Float[Array, ""]
    z_loss: Float[Array, ""]  # sum of log(Z)^2, without its coefficient
    log_z: Float[Array, ""]
    targets: Float[Array, ""]  # how many


def capped(logits: Array, softcap: float) -> Array:
    """c tanh(z/c) (Gemma 2), or z itself where c is 0."""
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


def output_logits(hidden: Array, lm_head: Array, softcap: float = 0.0) -> Array:
    """Logits in float32, accumulated from operands in the dtype of `hidden`."""
    weight = lm_head.astype(hidden.dtype)
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    return capped(jnp.einsum("...d,dv->...v", hidden, weight, preferred_element_type=dtype), softcap)


def token_losses(hidden: Array, lm_head: Array, targets: Array, mask: Array, softcap: float = 0.0) -> LossSums:
    """Sums over one chunk."""
    logits = output_logits(hidden, lm_head, softcap)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: it fuses, and needs no communication where the vocabulary is sharded.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    total = functools.partial(jnp.sum, where=mask)
    return LossSums(
        total(log_z - target_logit), total(jnp.square(log_z)), total(log_z), jnp.sum(mask, dtype=logits.dtype)
    )


def chunked_loss(
    hidden_BTD: Float[Array, "B T D"],
    lm_head_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    *,
    z_loss: float,
    chunk: int,
    softcap: float = 0.0,
) -> tuple[Float[Array, ""], LossSums]:
    """The sum of cross-entropy + z_loss * log(Z)^2 over the unmasked targets.

    Under differentiation each chunk's gradient is taken as soon as its logits are there, so that they are computed once
    and kept for none; the gradient of `lm_head_DV` accumulates in its own dtype, float32, over chunks of any number.

    Args:
      hidden_BTD: final hidden states, in the compute dtype.
      lm_head_DV: the output matrix in float32.
      targets_BT: token ids; where `mask_BT` is False they don't count.
      mask_BT: which targets count.
      z_loss: coefficient of log(Z)^2 (PaLM; 1e-4 in Nishida et al. 2024, Table 11).
      chunk: positions of each sequence in a chunk; the last may hold fewer.
      softcap: of the output logits; 0 is off.

    Returns:
      The loss summed over targets, and the sums that it consists of.
    """
    chunks = -(-hidden_BTD.shape[1] // chunk)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, chunks * chunk - x.shape[1]), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(x.shape[0], chunks, chunk, *x.shape[2:]), 1, 0)

    def chunk_loss(weight: Array, hidden: Array, targets: Array, mask: Array) -> tuple[Array, LossSums]:
        sums = token_losses(hidden, weight, targets, mask, softcap)
        return sums.cross_entropy + z_loss * sums.z_loss, sums

    return _sum_over_chunks(chunk_loss, lm_head_DV, split(hidden_BTD), (split(targets_BT), split(mask_BT)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_over_chunks(chunk_loss: Callable[..., Any], weight: Array, hidden: Array, rest: tuple[Array, ...]) -> Any:
    """Sums `chunk_loss(weight, hidden[i], *rest[i])` over i. Only its first output is differentiable."""

    def body(total: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, chunk_loss(weight, chunk[0], *chunk[1])), None

    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(chunk_loss, weight, hidden[0], *(x[0] for x in rest)))
    return jax.lax.scan(body, zero, (hidden, rest))[0]


def _forward(chunk_loss: Callable[..., Any], weight: Array, hidden: Array, rest: tuple[Array, ...]) -> Any:
    def body(carry: Any, chunk: Any) -> tuple[Any, Array]:
        total, weight_gradient = carry
        loss, pullback, sums = jax.vjp(lambda w, h: chunk_loss(w, h, *chunk[1]), weight, chunk[0], has_aux=True)
        d_weight, d_hidden = pullback(jnp.ones_like(loss))
        return (jax.tree.map(jnp.add, total, (loss, sums)), weight_gradient + d_weight), d_hidden

    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(chunk_loss, weight, hidden[0], *(x[0] for x in rest)))
    (total, weight_gradient), hidden_gradient = jax.lax.scan(body, (zero, jnp.zeros_like(weight)), (hidden, rest))
    return total, (weight_gradient, hidden_gradient)


def _backward(chunk_loss: Callable[..., Any], gradients: tuple[Array, Array], cotangents: Any) -> Any:
    scale, _ = cotangents
    weight_gradient, hidden_gradient = gradients
    return scale * weight_gradient, (scale * hidden_gradient).astype(hidden_gradient.dtype), None


_sum_over_chunks.defvjp(_forward, _backward)
