"""Attention where a mesh splits the sequence: each device has its own queries, and gathers all keys and values.

Shapes: B batch, T queries of a device, S all keys, H query heads, G key-value heads, R = H/G, K head size.
"""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxstab.model import attention_chunked
from jaxstab.model.attention_chunked import Places, by_group, by_token
from jaxstab.model.attention_splash import activation_spec, divides

AXIS = "sequence"  # of the mesh


def is_split_sequence(q_BTHK: Array, k_BTGK: Array) -> bool:
    """Whether the mesh of this trace splits the sequence, and divides it, the rows and the heads evenly."""
    shape = jax.sharding.get_abstract_mesh().shape
    size = shape.get(AXIS, 1)
    return size > 1 and AXIS in activation_spec() and q_BTHK.shape[1] % size == 0 and divides(q_BTHK, k_BTGK)


def sequence_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGK: Float[Array, "B T G K"],
    segments_BT: Int[Array, "B T"] | None,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B T H"]]:
    """As `chunked_attention`, of what `is_split_sequence` is true for.

    A device's queries meet all keys, whether they see them or not: half of the products are for nothing. The backward
    pass gathers keys and values again, and adds their gradients up over devices in float32.
    """
    spec = activation_spec()
    specs = spec, spec, spec, PartitionSpec(*spec[:2])
    attend = jax.shard_map(_attend, in_specs=specs, out_specs=(spec, PartitionSpec(*spec[:3])), check_vma=False)
    return attend(q_BTHK, k_BTGK, v_BTGK, segments_BT)


def _attend(q_BTHK: Array, k_BTGK: Array, v_BTGK: Array, segments_BT: Array | None) -> tuple[Array, Array]:
    """Of one device's rows, queries and heads."""
    return by_token(*_attention(*by_group(q_BTHK, k_BTGK, v_BTGK), segments_BT))


@jax.custom_vjp
def _attention(q_BGRTK: Array, k_BGTK: Array, v_BGTK: Array, segments_BT: Array | None) -> tuple[Array, Array]:
    return _forward(q_BGRTK, k_BGTK, v_BGTK, segments_BT)[0]


def _gathered(x: Array, axis: int) -> Array:
    return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True)


def _of_all(k_BGTK: Array, v_BGTK: Array, segments_BT: Array | None) -> tuple[Array, Array, Places]:
    """Keys and values of the whole sequence, and where this device's queries stand among them."""
    first = jax.lax.axis_index(AXIS) * k_BGTK.shape[2]
    segments_BS = None if segments_BT is None else _gathered(segments_BT, 1)
    return _gathered(k_BGTK, 2), _gathered(v_BGTK, 2), Places(segments_BT, segments_BS, first)


def _forward(
    q_BGRTK: Array, k_BGTK: Array, v_BGTK: Array, segments_BT: Array | None
) -> tuple[tuple[Array, Array], tuple]:
    outputs, _ = attention_chunked.forward(q_BGRTK, *_of_all(k_BGTK, v_BGTK, segments_BT))
    return outputs, (q_BGRTK, k_BGTK, v_BGTK, segments_BT, *outputs)


def _backward(residuals: tuple, cotangents: tuple[Array, Array]) -> tuple[Array, Array, Array, None]:
    q_BGRTK, k_BGTK, v_BGTK, segments_BT, *of_forward = residuals
    of_all = (q_BGRTK, *_of_all(k_BGTK, v_BGTK, segments_BT), *of_forward)
    d_q_BGRTK, *d_kv_BGSK = attention_chunked.backward(of_all, cotangents)
    d_k_BGTK, d_v_BGTK = (jax.lax.psum_scatter(d, AXIS, scatter_dimension=2, tiled=True) for d in d_kv_BGSK)
    return d_q_BGRTK, d_k_BGTK.astype(k_BGTK.dtype), d_v_BGTK.astype(v_BGTK.dtype), None


_attention.defvjp(_forward, _backward)
