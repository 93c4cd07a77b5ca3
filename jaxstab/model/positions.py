"""Rotary embedding of queries and keys. Shapes: B batch, T length, H heads, K head size, R the part that is rotated."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.numerics import widened


def rotary_tables(length: int, rotary_dim: int, theta: float) -> Float[Array, "2 T R"]:
    """Cosines and sines of rotary embedding (Su et al. 2021), in float32."""
    frequencies = theta ** -(jnp.arange(0, rotary_dim, 2, dtype=float) / rotary_dim)
    angles = jnp.arange(length, dtype=float)[:, None] * frequencies
    angles_TR = jnp.concatenate([angles, angles], axis=-1)
    return jnp.stack([jnp.cos(angles_TR), jnp.sin(angles_TR)])


def rotate(x_BTHK: Float[Array, "B T H K"], tables_2TR: Float[Array, "2 *B T R"]) -> Float[Array, "B T H K"]:
    """Rotary embedding, rotate-half, of the first R entries of a head, in float32 and back to the dtype of `x_BTHK`.

    The tables are those of all rows, or of each.
    """
    rotary_dim = tables_2TR.shape[-1]
    if rotary_dim < x_BTHK.shape[-1]:
        rotated_BTHR = rotate(x_BTHK[..., :rotary_dim], tables_2TR)
        return jnp.concatenate([rotated_BTHR, x_BTHK[..., rotary_dim:]], axis=-1)
    cos, sin = tables_2TR[..., None, :]
    first, second = jnp.split(widened(x_BTHK), 2, axis=-1)
    rotated = jnp.concatenate([-second, first], axis=-1)
    return (x_BTHK * cos + rotated * sin).astype(x_BTHK.dtype)
