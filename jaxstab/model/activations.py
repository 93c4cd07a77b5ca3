"""Activations of the MLP, by the names of `model.mlp`."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxstab.numerics import widened


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """Exact GELU, x Φ(x), in float32 and back to the dtype of `x` (Hendrycks and Gimpel 2016)."""
    x_32 = widened(x)
    return (0.5 * x_32 * (1 + jax.lax.erf(x_32 * math.sqrt(0.5)))).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The slope Φ(x) + x φ(x) reuses Φ(x). With JAX's derivative of erf, an MLP's backward pass takes a third longer
    # (on a CPU).
    (x,), (dx,) = primals, tangents
    x_32 = widened(x)
    cdf = 0.5 * (1 + jax.lax.erf(x_32 * math.sqrt(0.5)))
    slope = cdf + x_32 * jnp.exp(-0.5 * jnp.square(x_32)) / math.sqrt(2 * math.pi)
    return (x_32 * cdf).astype(x.dtype), slope.astype(x.dtype) * dx


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "swiglu": jax.nn.silu,
}
