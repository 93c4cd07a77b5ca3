"""Measurements as one array, made by the program that measures: a transfer costs an accelerator more than its bytes."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
Measurements = tuple[dict[str, Array], dict[str, Array]]  # scalars, and vectors over layers, by name


def scalars_and_vectors(statistics: dict[str, Array]) -> Measurements:
    """Tells scalars from vectors over layers."""
    scalars = {name: value for name, value in statistics.items() if not value.ndim}
    return scalars, {name: value for name, value in statistics.items() if value.ndim}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["shapes"])
@dataclasses.dataclass(frozen=True)
class Packed:
    """Measurements, one after another; a jitted function may return them.

    Attributes:
      values: their entries, on the device.
      shapes: (name, shape) of each, in their order.
    """

    values: Float[Array, " n"]
    shapes: Shapes


@jax.jit
def pack(*metrics: dict[str, Array]) -> Packed:
    """Puts measurements together: the scalars of all `metrics` first."""
    together = {name: array for each in metrics for name, array in each.items()}
    ordered = sorted(together.items(), key=lambda item: item[1].ndim > 0)
    values = jnp.concatenate([array.ravel() for _, array in ordered])
    return Packed(values, tuple((name, array.shape) for name, array in ordered))


def unpack(*packed: Packed) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Fetches measurements in one transfer each, which waits for them: scalars, and arrays over layers, by name."""
    scalars: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    for each in packed:
        values, places = np.asarray(each.values), _places(each.shapes)
        scalars |= zip(places.scalars, values[: len(places.scalars)].tolist(), strict=True)
        for name, start, end, shape in places.arrays:
            arrays[name] = values[start:end].reshape(shape)
    return scalars, arrays


class _Places(NamedTuple):
    """Where measurements are: the names of the scalars, which come first; name, start, end and shape of the arrays."""

    scalars: tuple[str, ...]
    arrays: tuple[tuple[str, int, int, tuple[int, ...]], ...]


@functools.cache
def _places(shapes: Shapes) -> _Places:
    scalars = tuple(name for name, shape in shapes if not shape)
    arrays, start = [], len(scalars)
    for name, shape in shapes[len(scalars) :]:
        end = start + math.prod(shape)
        arrays.append((name, start, end, shape))
        start = end
    return _Places(scalars, tuple(arrays))
