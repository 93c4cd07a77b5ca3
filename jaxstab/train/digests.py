"""Digests of arrays, which notice a flipped bit and are the same on any mesh."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def digests(tree: Any) -> dict[str, str]:
    """A digest of 64 bits for every array of `tree`, by path; the same on any mesh and under any sharding.

    One flipped bit always changes it; other changes (swapped elements, zeroed blocks) escape with probability 2^-64.
    """
    arrays = leaves_by_path(tree)
    meshes = [x.sharding.mesh for x in arrays.values() if isinstance(x.sharding, jax.sharding.NamedSharding)]
    replicated = jax.sharding.NamedSharding(meshes[0], jax.sharding.PartitionSpec()) if meshes else None
    lanes = jax.device_get(_fingerprints(list(arrays.values()), replicated))
    return {path: f"{high:08x}{low:08x}" for path, (high, low) in zip(arrays, lanes, strict=True)}


@functools.partial(jax.jit, static_argnames="replicated")
def _fingerprints(arrays: list[jax.Array], replicated: jax.sharding.Sharding | None) -> jax.Array:
    """uint32[arrays, 2], whole on every host."""
    lanes = jnp.stack([_fingerprint(array) for array in arrays])
    return lanes if replicated is None else jax.lax.with_sharding_constraint(lanes, replicated)


def _fingerprint(array: jax.Array) -> jax.Array:
    """Two sums, modulo 2^32, over words mixed with their position: a sum asks for no order, hence for no layout.

    At a given position the mix is a bijection, so that a change of one word always changes the sum. The first lane's
    position is the row-major index, the second's tells apart the indices that agree modulo 2^32.
    """
    words = _words(array)
    row_major, scattered = jnp.uint32(0), jnp.uint32(0)
    for axis, size in enumerate(words.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        row_major = row_major * jnp.uint32(size % 2**32) + index
        scattered = (scattered + index) * jnp.uint32(0x9E3779B1)
    first = _mixed(words ^ _mixed(row_major + jnp.uint32(0x27D4EB2F)))
    second = _mixed((words + jnp.uint32(0x85EBCA77)) ^ _mixed(scattered + jnp.uint32(0xC2B2AE3D)))
    return jnp.stack([first.sum(dtype=jnp.uint32), second.sum(dtype=jnp.uint32)])


def _words(array: jax.Array) -> jax.Array:
    """The bits of an array as uint32, of its shape (with a last axis of 2 for 64-bit types)."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[array.dtype.itemsize]
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _mixed(words: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every bit depends on every other (the finalizer of MurmurHash3)."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, `raw/lm_head/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
