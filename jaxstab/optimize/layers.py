"""What update rules and clippings of one matrix at a time share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from jaxstab.table import EMBEDDINGS, Row, Table

# An update rule or a clipping whose options are known. The table says what is stacked, and what is a matrix.
TransformationFactory = Callable[[Table[Any]], optax.GradientTransformation]


def one_per_layer(row: Row) -> tuple[int, ...]:
    """The shape of a statistic of a parameter: one entry per layer, in as many axes as the parameter has."""
    return tuple(size if row.stacked and axis == 0 else 1 for axis, size in enumerate(row.shape))


def is_hidden(row: Row) -> bool:
    """Whether a stored parameter is a matrix between hidden activations, a stack of them included."""
    return row.is_matrix and row.role not in (*EMBEDDINGS, "lm_head") and len(row.shape) == 2 + row.stacked


def is_masked(leaf: Any) -> bool:
    """Whether a leaf of an optax tree stands for a parameter that another transformation has."""
    return isinstance(leaf, optax.MaskedNode)
