"""Largest singular values by power iteration: of matrices, and of Jacobians that are never formed."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.numerics import largest_singular_value, matrix_norm
from jaxstab.table import Row

HIGHEST = jax.lax.Precision.HIGHEST


def spectral_norm(row: Row, weight: Float[Array, "*L I O"], iterations: int = 100) -> Float[Array, "*L"]:
    """‖W‖₂ of a matrix, or of each layer of a stack, in float32.

    The value is never too large, and on average too small by at most the fraction log(d)/iterations, by far less where
    one singular value stands out.

    Source: power iteration from a random vector; Kuczyński and Woźniakowski 1992 for its error, whatever the spectrum.
    """

    def norm(w_IO: Array) -> Array:
        start_O = jax.random.normal(jax.random.key(0), w_IO.shape[1:])
        return largest_singular_value(
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
    """‖∂f/∂x‖₂ at `x`, by power iteration on JᵀJ with two passes of reverse mode each.

    Over independent parts of x, as the tokens of an MLP are, it is the largest of their norms.

    Source: as for `spectral_norm`; Yao et al. 2020, PyHessian, do the same with Hessians.

    Args:
      function: from an array to an array, each of any shape.
      x: where; iterations run in its dtype.
      key: of the random vector that they start from.
      iterations: how many.
    """
    y, pullback = jax.vjp(function, x)
    # J v is the transpose of u -> Jᵀ u: functions with gradients of their own have no forward mode.
    transposed = jax.linear_transpose(lambda u: pullback(u)[0], y)
    start = jax.random.normal(key, x.shape, x.dtype)
    return largest_singular_value(lambda v: transposed(v)[0], lambda u: pullback(u)[0], start, iterations)
