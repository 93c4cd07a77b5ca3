"""Curvature of a loss, by losses along a step and by products with its Hessian, which is never formed.

Directions are trees of arrays in the structure of the parameters; sums over their entries are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Product = Callable[[Any], Any]  # v -> H v of a symmetric H
Bracket = tuple[Array, Array, Array, Array]  # L(0), the ends of where the rise is, and evaluations so far

TOLERANCE = 1.05  # of a bracket's ends: four bisections of a factor of 2 leave one of 2^(1/16)
MOST_LOSSES = 16


def quotient(direction: Any, product: Any, left: Any = None) -> Float[Array, ""]:
    """⟨left, H d⟩ / ‖d‖², given d and H d; `left` is d by default, which makes it H's curvature along d. 0 for d = 0.

    Source: Rayleigh's quotient; with left = P⁻¹g, d = g the gradient-directional curvature of the preconditioned
    Hessian (Bai et al. 2025, arXiv:2506.04805), in whose runs Adam spiked when it stayed above 2/η.
    """
    square = optax.tree.vdot(direction, direction)
    return optax.tree.vdot(direction if left is None else left, product) / jnp.where(square > 0, square, 1.0)


def critical_step(loss_at: Callable[[Array], Array], most: int = MOST_LOSSES) -> Float[Array, ""]:
    """The least t > 0 with L(t) > L(0) on a line, within 2.5%: doubled or halved from t = 1, then bisected.

    Source: the critical learning rate of Kalra et al. 2026 (arXiv:2601.16979), in units of the step that is taken: 1 is
    a step that just doesn't lower its own loss. As in theirs, a rise between two points of the search isn't noticed.

    Args:
      loss_at: t -> L(t), the loss after t times the step. A loss that isn't finite counts as a rise.
      most: evaluations of it; with 16, t is between 2^-14 and 2^14, and is that end where the loss rises nowhere
        within or everywhere. Usually it takes seven to ten.
    """

    def is_wide(bracket: Bracket) -> Array:
        _, low, high, evaluations = bracket
        return (evaluations < most) & ~(high <= TOLERANCE * low)

    def narrow(bracket: Bracket) -> Bracket:
        start, low, high, evaluations = bracket
        between = jnp.where(low > 0, jnp.sqrt(low * high), high / 2)
        t = jnp.where(evaluations == 0, 0.0, jnp.where(jnp.isinf(high), jnp.maximum(1.0, 2 * low), between))
        loss = loss_at(t)
        start = jnp.where(evaluations == 0, loss, start)
        rises = ~(loss <= start)
        return start, jnp.where(rises, low, t), jnp.where(rises, t, high), evaluations + 1

    zero = jnp.zeros((), jnp.float32)
    begun = zero, zero, jnp.full((), jnp.inf), jnp.zeros((), jnp.int32)
    start, low, high, _ = jax.lax.while_loop(is_wide, narrow, begun)
    reached = jnp.where(low > 0, jnp.where(jnp.isinf(high), low, jnp.sqrt(low * high)), high)
    return jnp.where(jnp.isfinite(start), reached, jnp.nan)


def largest_eigenvalue(product: Product, start: Any, steps: int = 10) -> Float[Array, ""]:
    """The largest eigenvalue of a symmetric map, from below: the largest Ritz value after so many Lanczos steps.

    Source: Golub and Van Loan, Matrix Computations, section 10.1; the vectors are not orthogonalized again, which makes
    copies of eigenvalues that have converged, and takes no memory.

    Args:
      product: v -> A v, of trees.
      start: a tree that isn't zero, with a part along the eigenvector.
      steps: products that are taken.
    """

    def step(carry: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
        before, v, beta = carry
        w = product(v)
        alpha = optax.tree.vdot(v, w)
        w = jax.tree.map(lambda w, v, before: w - alpha * v - beta * before, w, v, before)
        next_beta = optax.tree.norm(w)
        return (v, _over(w, next_beta), next_beta), (alpha, next_beta)

    first = _over(start, optax.tree.norm(start))
    begun = optax.tree.zeros_like(start), first, jnp.zeros((), jnp.float32)
    _, (alphas, betas) = jax.lax.scan(step, begun, length=steps)
    tridiagonal = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    return jnp.linalg.eigvalsh(tridiagonal)[-1]


def _over(tree: Any, norm: Array) -> Any:
    return jax.tree.map(lambda x: x / jnp.where(norm > 0, norm, 1.0), tree)
