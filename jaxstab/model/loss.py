"""Cross-entropy and z-loss in chunks: the logits of a whole batch are never in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LossSums(NamedTuple):
    """Sums over the unmasked targets, in float32; divide by `targets` for means."""

    cross_entropy: Float[Array, ""]
    z_loss: Float[Array, ""]  # sum of log(Z)^2, without its coefficient
    log_z: Float[Array, ""]
    targets: Float[Array, ""]  # their number


def capped(logits: Array, softcap: float) -> Array:
    """c tanh(z/c) (Gemma 2), or z itself where c is 0."""
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


def output_logits(hidden: Array, lm_head: Array, softcap: float = 0.0) -> Array:
    """Logits in float32, accumulated from operands in the dtype of `hidden`."""
    return capped(_product("...d,dv->...v", hidden, lm_head.astype(hidden.dtype)), softcap)


def _product(subscripts: str, *operands: Array) -> Array:
    """An einsum of operands of one dtype, accumulated and given in float32 (or float64)."""
    return jnp.einsum(subscripts, *operands, preferred_element_type=jnp.promote_types(operands[0].dtype, jnp.float32))


def sums_of_logits(logits: Array, targets: Array, mask: Array) -> LossSums:
    """Sums over the targets of one chunk, of logits after any cap."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: it fuses, and needs no communication where the vocabulary is sharded.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    total = functools.partial(jnp.sum, where=mask)
    return LossSums(
        total(log_z - target_logit), total(jnp.square(log_z)), total(log_z), jnp.sum(mask, dtype=logits.dtype)
    )


@jax.named_scope("loss")
def chunked_loss(
    hidden_BTD: Float[Array, "B T D"],
    lm_head_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    *,
    z_loss: float,
    chunk: int,
    softcap: float = 0.0,
    groups: tuple[int, int] = (1, 1),
) -> tuple[Float[Array, ""], LossSums]:
    """The sum of cross-entropy + z_loss * log(Z)^2 over the unmasked targets.

    Under differentiation each chunk's gradient is taken as soon as its logits are there, so that logits are
    computed once and not kept. Its products take operands in the compute dtype. The gradient of `lm_head_DV`
    accumulates over all chunks in float32, in each group of rows by itself: the devices that rows are split over add up
    their sums once, after the last chunk.

    Args:
      hidden_BTD: final hidden states, in the compute dtype.
      lm_head_DV: the output matrix in float32.
      targets_BT: token ids; where `mask_BT` is False they don't count.
      mask_BT: which targets count.
      z_loss: coefficient of log(Z)^2 (PaLM; 1e-4 in Nishida et al. 2024, Table 11).
      chunk: positions of each sequence in a chunk, at most; the last may hold fewer.
      softcap: of the output logits; 0 is off.
      groups: of rows and of positions, as many as the mesh's axes `fsdp` and `sequence` have devices.

    Returns:
      The loss summed over targets, and the sums that it consists of.
    """
    (batch, length), (of_rows, of_positions) = targets_BT.shape, groups
    of_rows, of_positions = of_rows if batch % of_rows == 0 else 1, of_positions if length % of_positions == 0 else 1
    length //= of_positions
    chunk = min(chunk, length)
    chunks = -(-length // chunk)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, chunks * chunk - x.shape[1]), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(x.shape[0], chunks, chunk, *x.shape[2:]), 1, 0)

    def chunk_loss(logits: Array, targets: Array, mask: Array) -> tuple[Array, LossSums]:
        sums = sums_of_logits(capped(logits, softcap), targets, mask)
        return sums.cross_entropy + z_loss * sums.z_loss, sums

    def of_group(hidden_BTD: Array, targets_BT: Array, mask_BT: Array) -> tuple[Array, LossSums]:
        return _sum_over_chunks(chunk_loss, lm_head_DV, split(hidden_BTD), split(targets_BT), split(mask_BT))

    if of_positions > 1:
        of_part = jax.vmap(of_group, in_axes=1, spmd_axis_name="sequence")
        parts = [x.reshape(batch, of_positions, length, *x.shape[2:]) for x in (hidden_BTD, targets_BT, mask_BT)]
    else:
        of_part, parts = of_group, [hidden_BTD, targets_BT, mask_BT]
    if of_rows > 1:
        of_part = jax.vmap(of_part, spmd_axis_name="fsdp")
        parts = [x.reshape(of_rows, -1, *x.shape[1:]) for x in parts]
    return jax.tree.map(jnp.sum, of_part(*parts))


ChunkLoss = Callable[[Array, Array, Array], tuple[Array, LossSums]]  # of logits, targets and mask


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_over_chunks(chunk_loss: ChunkLoss, weight: Array, hidden: Array, targets: Array, mask: Array) -> Any:
    """The loss and its sums over chunks, the leading axis of the last three. Only the loss is differentiable."""
    weight = _operand(weight, hidden)

    def add(total: Any, chunk: Any) -> tuple[Any, None]:
        hidden, *rest = chunk
        return jax.tree.map(jnp.add, total, chunk_loss(output_logits(hidden, weight), *rest)), None

    return jax.lax.scan(add, _zero(chunk_loss, weight, hidden, targets, mask), (hidden, targets, mask))[0]


def _operand(weight: Array, hidden: Array) -> Array:
    """lm_head in the compute dtype, gathered once for all chunks where its width is split over devices."""
    return nn.with_logical_constraint(weight.astype(hidden.dtype), (None, "vocab"))


def _zero(chunk_loss: ChunkLoss, weight: Array, hidden: Array, targets: Array, mask: Array) -> Any:
    """Sums over no chunk."""
    first = jax.eval_shape(output_logits, hidden[0], weight), targets[0], mask[0]
    return jax.tree.map(jnp.zeros_like, jax.eval_shape(chunk_loss, *first))


def _forward(chunk_loss: ChunkLoss, weight: Array, hidden: Array, targets: Array, mask: Array) -> Any:
    """The same, and the gradients by `weight` and `hidden`."""
    operand = _operand(weight, hidden)

    def add(carry: Any, chunk: Any) -> tuple[Any, Array]:
        total, d_weight = carry
        hidden, *rest = chunk
        logits = output_logits(hidden, operand)
        loss, pullback, sums = jax.vjp(lambda logits: chunk_loss(logits, *rest), logits, has_aux=True)
        (d_logits,) = pullback(jnp.ones_like(loss))
        d_logits = jax.lax.optimization_barrier(d_logits.astype(hidden.dtype))  # see `layers.linear`
        d_weight += _product("...d,...v->dv", hidden, d_logits).astype(weight.dtype)
        d_hidden = _product("...v,dv->...d", d_logits, operand).astype(hidden.dtype)
        return (jax.tree.map(jnp.add, total, (loss, sums)), d_weight), d_hidden

    zero = _zero(chunk_loss, operand, hidden, targets, mask), jnp.zeros_like(weight)
    (total, d_weight), d_hidden = jax.lax.scan(add, zero, (hidden, targets, mask))
    return total, (d_weight, d_hidden)


def _backward(chunk_loss: ChunkLoss, gradients: tuple[Array, Array], cotangents: Any) -> Any:
    scale, _ = cotangents
    d_weight, d_hidden = gradients
    return scale * d_weight, (scale * d_hidden).astype(d_hidden.dtype), None, None


_sum_over_chunks.defvjp(_forward, _backward)
