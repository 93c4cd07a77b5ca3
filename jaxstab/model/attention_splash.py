"""Splash attention, the fused kernel that JAX has for TPUs, on every device's own sequences and heads.

Shapes: B batch, T length, H query heads, G key-value heads, K head size.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxstab.numerics import widened

# Rows of queries and of keys at once: the largest that divides the length. JAX's default of 128 is for small tests.
BLOCKS = (512, 256, 128)


def is_splash_shape(q_BTHK: Array, k_BTGK: Array) -> bool:
    """Whether the mesh of this trace divides the sequences and heads of these, and a block their length."""
    shape = jax.sharding.get_abstract_mesh().shape
    if not shape:  # no mesh to map over, as where a sample is generated
        return False
    whole = math.prod(shape[axis] for axis in _names(activation_spec()[1])) == 1
    return whole and divides(q_BTHK, k_BTGK) and q_BTHK.shape[1] % BLOCKS[-1] == 0


def divides(q_BTHK: Array, k_BTGK: Array) -> bool:
    """Whether the mesh of this trace divides the sequences and heads of these."""
    shape, (batch, _, heads, _) = jax.sharding.get_abstract_mesh().shape, activation_spec()
    devices = (math.prod(shape[axis] for axis in _names(part)) for part in (batch, heads, heads))
    counts = len(q_BTHK), q_BTHK.shape[2], k_BTGK.shape[2]
    return all(count % number == 0 for count, number in zip(counts, devices, strict=True))


def splash_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGK: Float[Array, "B T G K"],
    segments_BT: Int[Array, "B T"] | None,
) -> Float[Array, "B T H K"]:
    """Causal attention within segments, its softmax in float32, of what `is_splash_shape` is true for.

    A partitioner can't split a kernel, so this maps over the devices; under a vmap over replicas, over these too.
    """
    spec = activation_spec()
    specs = spec, spec, spec, PartitionSpec(*spec[:2])
    attend = jax.shard_map(_attend, in_specs=specs, out_specs=spec, check_vma=False)
    return attend(q_BTHK, k_BTGK, v_BTGK, segments_BT)


def _attend(q_BTHK: Array, k_BTGK: Array, v_BTGK: Array, segments_BT: Array | None) -> Array:
    """Of one device's sequences and heads."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # a tenth of a second that only TPUs need

    _, length, heads, size = q_BTHK.shape
    block = next(block for block in BLOCKS if length % block == 0)
    sizes = splash.BlockSizes(block, block, block, block, block, block, block, block)
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes)
    scaled_BTHK = (widened(q_BTHK) / math.sqrt(size)).astype(q_BTHK.dtype)  # the kernel takes ⟨q, k⟩ as it is
    q_BHTK, k_BGTK, v_BGTK = (x.swapaxes(1, 2) for x in (scaled_BTHK, k_BTGK, v_BTGK))
    segments = None if segments_BT is None else splash.SegmentIds(segments_BT, segments_BT)
    return jax.vmap(kernel)(q_BHTK, k_BGTK, v_BGTK, segments).swapaxes(1, 2)


def activation_spec() -> PartitionSpec:
    """Mesh axes of [B, T, H or G, K] by the logical rules in force."""
    return nn.logical_to_mesh_axes(("batch", "length", "heads", None)) or PartitionSpec()


def _names(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else part or ()
