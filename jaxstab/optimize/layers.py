"""What is taken over one matrix at a time, in a stack as well as outside it."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxstab.table import Row, Table

# An update rule or a clipping whose options are known. The table says what is stacked, and what is a matrix.
TransformationFactory = Callable[[Table], optax.GradientTransformation]


def one_per_layer(row: Row) -> tuple[int, ...]:
    """The shape of a statistic of a parameter: one entry a layer, in as many axes as the parameter has."""
    return tuple(size if row.stacked and axis == 0 else 1 for axis, size in enumerate(row.shape))


def mean_square(row: Row, x: Array) -> Array:
    """Mean square of a parameter, or of each layer of a stack, in the shape of `one_per_layer`."""
    return jnp.mean(jnp.square(x), axis=tuple(range(int(row.stacked), x.ndim)), keepdims=True)


def norm(row: Row, x: Array) -> Array:
    """L2 norm of a parameter, or of each layer of a stack, in the shape of `one_per_layer`."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(int(row.stacked), x.ndim)), keepdims=True))
