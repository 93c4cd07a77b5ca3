"""MetaInit (Dauphin and Schoenholz 2019): scales from which a step of gradient descent changes the gradient little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.config import Range
from jaxstab.search.base import LEAST, Factors, Problem, Search, hessian_times
from jaxstab.table import Gradients, Weights


def metainit(
    iterations: Annotated[int, "Steps of the search.", Range(1)] = 500,
    learning_rate: Annotated[float, "Change of a matrix's Frobenius norm by a step.", Range(above=0)] = 0.1,
    momentum: Annotated[float, "Of the steps' signs.", Range(0, below=1)] = 0.9,
    eps: Annotated[
        float, "Added to every entry of the gradient that is divided by, away from 0.", Range(above=0)
    ] = 1e-5,
) -> Search:
    """Norms by which the gradient changes as little as possible along itself: the gradient quotient is brought down.

    Formula: GQ = 1/P Σ |(g - Hg) / (g + ε sgn g) - 1|; for every matrix m ← μ m - η sgn ∂GQ/∂‖W‖, ‖W‖ ← ‖W‖ + m
    Paper: Dauphin and Schoenholz 2019, equation 1 and Algorithm 1, with its code.
    Parameters: none.
    Checked against: the authors' listing in PyTorch, by its double backward (tests/parity).
    Certainty: primary for the formula (the authors' listing). It takes noise for inputs; the run's own batches, and the
      bound that no norm falls below 1% of what it was, are this project's reading.
    """

    def start(factors: Factors) -> Factors:
        return jax.tree.map(jnp.zeros_like, factors)

    def update(
        problem: Problem, factors: Factors, memory: Factors, tokens: Array, following: Array
    ) -> tuple[Factors, Factors, Array]:
        quotient, gradients = quotient_and_gradient(
            lambda weights: problem.gradient(weights, tokens), problem.scaled(factors), eps
        )
        slopes = problem.slopes(gradients)
        memory = jax.tree.map(lambda m, slope: momentum * m - learning_rate * jnp.sign(slope), memory, slopes)
        return jax.tree.map(_moved, factors, memory, problem.norms()), memory, quotient

    return Search(iterations, 9, start, update, "gradient quotient")


def _moved(factor: Array, change: Array, norm: Array) -> Array:
    """The factor of a matrix, drawn with `norm`, whose norm has changed; a matrix of zeros stays one."""
    return jnp.where(norm > 0, jnp.maximum(factor + change / jnp.where(norm > 0, norm, 1.0), LEAST), factor)


def quotient_and_gradient(
    gradient: Callable[[Weights], Gradients], weights: Weights, eps: float
) -> tuple[Float[Array, ""], Gradients]:
    """The gradient quotient and its gradient by the weights.

    The quotient is a function of g and h = Hg. With its derivatives a and b by these, its gradient is H a + d(Hg)ᵀ b =
    H (a + H b) + D³L[g, b]: products with vectors alone, each a sum over micro-batches, so that nothing is kept of a
    pass backward.
    """
    g = gradient(weights)
    h = hessian_times(gradient, weights, g)
    quotient, (a, b) = jax.value_and_grad(_quotient, (0, 1))(g, h, eps)
    hessian_b, third = jax.jvp(lambda weights: hessian_times(gradient, weights, b), (weights,), (g,))
    through_both = hessian_times(gradient, weights, jax.tree.map(jnp.add, a, hessian_b))
    return quotient, jax.tree.map(jnp.add, through_both, third)


def _quotient(gradients: Gradients, products: Gradients, eps: float) -> Float[Array, ""]:
    """GQ of g and Hg, a mean over all parameters; sgn 0 is 1."""

    def summed(g: Array, h: Array) -> Array:
        return jnp.sum(jnp.abs((g - h) / (g + eps * jnp.where(g >= 0, 1.0, -1.0)) - 1))

    sums = jax.tree.leaves(jax.tree.map(summed, gradients, products))
    return sum(sums) / sum(leaf.size for leaf in jax.tree.leaves(gradients))
