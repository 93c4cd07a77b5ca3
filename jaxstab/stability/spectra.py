"""Largest singular values by power iteration: of matrices, and of Jacobians that are never formed."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.stability.norms import matrix_norm
from jaxstab.table import Row

TINY = 1e-30  # smallest norm that a vector is divided by: a map to zero has norm zero
HIGHEST = jax.lax.Precision.HIGHEST


def spectral_norm(row: Row, weight: Float[Array, "*L I O"], iterations: int = 100) -> Float[Array, "*L"]:
    """‖W‖₂ of a matrix, or of each layer of a stack, in float32: never above it, and below by at
    most log(d)/iterations of it on average.

    Source: power iteration on WᵀW from a random vector (Golub and Van Loan, Matrix Computations); its error, whatever
    the spectrum, Kuczyński and Woźniakowski 1992. Where one value stands out it is far smaller.
    """

    def norm(w_IO: Array) -> Array:
        start_O = jax.random.normal(jax.random.key(0), w_IO.shape[1:])
        return _power(
            lambda v: jnp.matmul(w_IO, v, precision=HIGHEST),
            lambda u: jnp.matmul(u, w_IO, precision=HIGHEST),
            start_O,
            iterations,
        )

    weight = weight.astype(jnp.float32)
    return jax.vmap(norm)(weight) if row.stacked else norm(weight)


def stable_rank(row: Row, weight: Float[Array, "*L I O"], largest: Float[Array, "*L"]) -> Float[Array, "*L"]:
    """‖W‖_F² / ‖W‖₂² (Rudelson and Vershynin 2007), given ‖W‖₂: between 1 and the rank; 0 for a matrix of zeros."""
    return jnp.where(largest == 0, 0.0, jnp.square(matrix_norm(row, weight) / jnp.where(largest == 0, 1.0, largest)))


def jacobian_norm(function: Callable[[Array], Array], x: Array, key: Array, iterations: int = 30) -> Float[Array, ""]:
    """‖∂f/∂x‖₂ at `x`, by power iteration on JᵀJ with a jvp and a vjp each.

    Over independent parts of x, as the tokens of an MLP are, it is the largest of their norms.

    Source: as for `spectral_norm`; Yao et al. 2020, PyHessian, do the same with Hessians.

    Args:
      function: from an array to an array, each of any shape.
      x: where; iterations run in its dtype.
      key: of the random vector that they start from.
      iterations: how many.
    """
    _, forward = jax.linearize(function, x)
    backward = jax.linear_transpose(forward, x)
    return _power(forward, lambda u: backward(u)[0], jax.random.normal(key, x.shape, x.dtype), iterations)


def _power(
    forward: Callable[[Array], Array], backward: Callable[[Array], Array], start: Array, iterations: int
) -> Float[Array, ""]:
    """The largest singular value of a linear map, given its transpose."""
    v = jax.lax.fori_loop(0, iterations, lambda _, v: _unit(backward(forward(v))), _unit(start))
    return jnp.sqrt(jnp.sum(jnp.square(forward(v))))


def _unit(v: Array) -> Array:
    return v / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(v))), TINY)
