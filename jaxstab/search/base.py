"""What a search of initial scales is: pure functions of a model's loss, and of a factor for every matrix.

A search multiplies every effective matrix by a positive factor, one for each layer of a stack. It asks for gradients
of the loss by the effective weights alone, and so knows neither the model nor how its weights are stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstab.numerics import layer_axes, matrix_norm
from jaxstab.table import Effective, Gradients, Row, Table, Weights, leaves_of, rows

LEAST = 0.01  # the smallest factor: GradInit's, here of all searches

Factors = dict[str, Float[Array, "*L"]]  # by path of a matrix that isn't tied: a scalar, or one for each layer
State = Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is scaled, and the loss by which its scale is judged.

    Attributes:
      table: rows of the effective weights.
      weights: as they are drawn, float32.
      gradient: (weights, tokens [B, T+1]) -> the gradient of the batch's mean loss, float32.
    """

    table: Table[Effective]
    weights: Weights
    gradient: Callable[[Weights, Int[Array, "B T+1"]], Gradients]

    def ones(self) -> Factors:
        """The factors that change nothing."""
        return {row.path: jnp.ones(row.shape[: int(row.stacked)]) for row in rows(self.table) if _has_factor(row)}

    def scaled(self, factors: Factors) -> Weights:
        """The weights with every matrix times its factor; a tied matrix has that of its source."""
        return jax.tree.map(lambda row, weight: _times(row, factors, weight), self.table, self.weights)

    def slopes(self, gradients: Gradients) -> Factors:
        """The derivatives by the factors, ⟨G, W⟩, from a gradient G by the weights."""
        slopes = jax.tree.map(jnp.zeros_like, self.ones())
        leaves = leaves_of(self.table, self.weights), leaves_of(self.table, gradients)
        for row, weight, gradient in zip(rows(self.table), *leaves, strict=True):
            if row.is_matrix:
                slopes[row.tied or row.path] += jnp.sum(weight * gradient, layer_axes(row, weight))
        return slopes

    def norms(self) -> Factors:
        """The Frobenius norms of the matrices as they are drawn."""
        leaves = zip(rows(self.table), leaves_of(self.table, self.weights), strict=True)
        return {row.path: matrix_norm(row, weight) for row, weight in leaves if _has_factor(row)}


def _has_factor(row: Row) -> bool:
    return row.is_matrix and not row.tied


def _times(row: Row, factors: Factors, weight: Array) -> Array:
    if not row.is_matrix:
        return weight
    factor = factors[row.tied or row.path]
    return weight * factor.reshape(*factor.shape, 1, 1)


class Search(NamedTuple):
    """A search of initial scales.

    Attributes:
      iterations: how often `update` is called.
      gradients: what an iteration costs at most, in gradients of the loss on a batch; the product of a Hessian and a
        vector costs two.
      start: factors -> the search's own state.
      update: (problem, factors, state, tokens, following) -> (factors, state, reading). `tokens` `[B, T+1]` is the
        batch of this iteration, `following` that of the next; the reading is a scalar that tells how the search goes.
      reading: what that is called.
      parts: the batch is taken in as many parts of equal size.
    """

    iterations: int
    gradients: int
    start: Callable[[Factors], State]
    update: Callable[[Problem, Factors, State, Array, Array], tuple[Factors, State, Array]]
    reading: str
    parts: int = 1


def hessian_times(gradient: Callable[[Weights], Gradients], weights: Weights, vector: Weights) -> Gradients:
    """H v, the derivative of the gradient along v; it costs two gradients, and no more memory than both."""
    return jax.jvp(gradient, (weights,), (vector,))[1]
