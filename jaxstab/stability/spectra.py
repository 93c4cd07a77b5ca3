"""Singular values: the largest of matrices, and of Jacobians that are never formed, by power iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.numerics import l2_norm, largest_singular_value, matrix_norm, power_iteration, unit
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


class Spectrum(NamedTuple):
    """The first singular value of a Jacobian, its left and right singular vectors, and ‖J‖_F² / ‖J‖₂²."""

    norm: Float[Array, ""]
    left: Array
    right: Array
    stable_rank: Float[Array, ""]


def jacobian_spectrum(
    function: Callable[[Array], Array], x: Array, key: Array, iterations: int = 30, samples: int = 8
) -> tuple[Array, Spectrum]:
    """What `jacobian_norm` finds, with the vectors that it is found with, and the stable rank.

    Source: ‖J‖_F² is the mean of ‖Jᵀz‖² over vectors z of random signs (Hutchinson 1989), within about √(2/samples)
    over the root of the stable rank.

    Returns:
      f(x), and the spectrum.
    """
    y, pullback = jax.vjp(function, x)
    transposed = jax.linear_transpose(lambda u: pullback(u)[0], y)  # as in `jacobian_norm`
    of_start, of_signs = jax.random.split(key)

    def iterate(_: Any, v: Array) -> Array:
        return power_iteration(lambda v: transposed(v)[0], lambda u: pullback(u)[0], v)[1]

    right = jax.lax.fori_loop(0, iterations, iterate, unit(jax.random.normal(of_start, x.shape, x.dtype)))
    stretched = transposed(right)[0]
    norm = l2_norm(stretched)

    def square(key: Array) -> Array:
        return jnp.sum(jnp.square(pullback(jax.random.rademacher(key, y.shape, y.dtype))[0]))

    frobenius_square = jnp.mean(jax.lax.map(square, jax.random.split(of_signs, samples)))
    stable_rank = frobenius_square / jnp.square(jnp.where(norm > 0, norm, 1.0))
    return y, Spectrum(norm, unit(stretched), right, stable_rank)


def product_change_entropy(
    q_DK: Float[Array, "D K"], k_DK: Float[Array, "D K"], d_q_DK: Float[Array, "D K"], d_k_DK: Float[Array, "D K"]
) -> Float[Array, ""]:
    """The entropy, in nats, of the singular values of Δ = (W_q + ΔW_q)(W_k + ΔW_k)ᵀ - W_q W_kᵀ; 0 for Δ = 0.

    -Σ p log p, p = σ / Σ σ: the logarithm of Δ's effective rank (Roy and Vetterli 2007), at most log 2K. Δ is a product
    of two matrices of 2K columns, so that its singular values are those of a 2K x 2K matrix.
    """
    left = jnp.concatenate([d_q_DK, q_DK + d_q_DK], axis=1)  # Δ = ΔW_q W_kᵀ + (W_q + ΔW_q) ΔW_kᵀ: nothing cancels
    right = jnp.concatenate([k_DK, d_k_DK], axis=1)
    small = jnp.matmul(jnp.linalg.qr(left, mode="r"), jnp.linalg.qr(right, mode="r").T, precision=HIGHEST)
    values = jnp.linalg.svd(small, compute_uv=False)
    total = jnp.sum(values)
    return jnp.sum(jax.scipy.special.entr(values / jnp.where(total > 0, total, 1.0)))
