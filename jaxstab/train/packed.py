"""A step's measurements on their way to the host, as one array: a transfer costs an accelerator more than its bytes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Packed(NamedTuple):
    """Measurements, one after another.

    Attributes:
      values: their entries, on the device.
      shapes: {name: shape}, in their order.
    """

    values: Float[Array, " n"]
    shapes: dict[str, tuple[int, ...]]


@jax.jit
def _concatenated(arrays: list[Array]) -> Float[Array, " n"]:
    return jnp.concatenate([array.ravel() for array in arrays])


def pack(*told: dict[str, Array]) -> Packed:
    """Puts what was told of a step together, without waiting for it: before the next step is dispatched."""
    together = {name: array for each in told for name, array in each.items()}
    return Packed(_concatenated(list(together.values())), {name: array.shape for name, array in together.items()})


def unpack(packed: Packed) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Fetches it in one transfer, which waits for the step: scalars, and the arrays over layers, by name."""
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in packed.shapes.values()])
    parts = np.split(np.asarray(packed.values), ends[:-1])
    shaped = {name: part.reshape(shape) for (name, shape), part in zip(packed.shapes.items(), parts, strict=True)}
    scalars = {name: float(value) for name, value in shaped.items() if not value.ndim}
    return scalars, {name: value for name, value in shaped.items() if value.ndim}
