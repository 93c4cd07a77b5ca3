"""Layers of the model that differ from Flax's: gradients summed in float32, logical axes, no initial values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxstab.model.config import ModelConfig
from jaxstab.model.norms import NORMS


def declared(axes: tuple[str | None, ...]) -> Callable[..., Any]:
    """An initializer that gives logical axes alone: `jaxstab.initialize` draws the values."""
    return nn.with_logical_partitioning(nn.initializers.zeros, axes)


@jax.custom_vjp
def linear(x: Array, kernel: Array) -> Array:
    """x W in the dtype of `x`. The gradient of a float32 kernel is a float32 sum, over devices too, where `x` is bf16.

    Differentiated by itself, the cast of the kernel would round the gradient to bf16 before it is summed over devices.
    """
    return x @ kernel.astype(x.dtype)


def _linear_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel.astype(x.dtype), (x, kernel)  # a product that `remat=dots` knows as one


def _linear_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    # Arrays of their own: XLA would compute what leads to them, an activation or its slope, once more for a product,
    # and on a CPU in a transposing copy.
    x, dy = jax.lax.optimization_barrier(x), jax.lax.optimization_barrier(dy)
    return dy @ kernel.astype(x.dtype).T, _outer_product(x, dy, kernel.dtype)


def _outer_product(x: Array, dy: Array, dtype: Any) -> Array:
    """xᵀ dy over all tokens. A CPU transposes the left operand, which is the narrower one here."""
    product = functools.partial(jnp.einsum, preferred_element_type=dtype)
    if x.shape[-1] <= dy.shape[-1]:
        return product("...i,...o->io", x, dy)
    return jax.lax.optimization_barrier(product("...i,...o->oi", x, dy)).T  # which XLA would turn into the other


linear.defvjp(_linear_forward, _linear_backward)


class Linear(nn.Module):
    """x W + b in the compute dtype. The bias is cast once it is broadcast, so that its gradient is a float32 sum."""

    config: ModelConfig
    features: int
    axes: tuple[str, str]
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", declared(self.axes), (x.shape[-1], self.features))
        y = linear(x, kernel)
        if self.bias:
            bias = self.param("bias", declared(self.axes[1:]), (self.features,))
            y = y + jnp.broadcast_to(bias, y.shape).astype(y.dtype)
        return y


def norm_layer(config: ModelConfig, name: str | None = None, axis: str | None = "embed") -> nn.Module:
    """The norm of `model.norm`, over entries of a logical axis."""
    return NORMS[config.norm](config, declared((axis,)), name)
