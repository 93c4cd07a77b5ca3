"""GradInit (Zhu et al. 2021): scales by which the optimizer's first step lowers the loss most."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.config import Range
from jaxstab.numerics import l2_norm
from jaxstab.search.base import Factors, Problem, Search, hessian_times
from jaxstab.search.descent import Descent, State
from jaxstab.table import Gradients, Weights


def gradinit(
    iterations: Annotated[int, "Steps of the search.", Range(1)] = 780,
    learning_rate: Annotated[float, "Of Adam on the factors.", Range(above=0)] = 2.5e-3,
    b2: Annotated[float, "Decay of Adam's second moment of the factors.", Range(0, below=1)] = 0.98,
    rule: Annotated[
        str,
        "The optimizer whose first step is taken: `adam` by the gradient's signs, `sgd` by the gradient over its norm.",
        ("adam", "sgd"),
    ] = "adam",
    step: Annotated[float, "Rate η of that step.", Range(above=0)] = 1e-3,
    gamma: Annotated[
        float, "Largest norm of the gradient, L1 for adam and L2 for sgd; 0 is no bound, as for transformers.", Range(0)
    ] = 0.0,
    clip: Annotated[float, "Largest slope by a factor; 0 is none, as for transformers; 1 elsewhere.", Range(0)] = 0.0,
) -> Search:
    """Factors that bring the loss after one step down, while the gradient's norm stays below a bound.

    Formula: min over m of L(θ_m - η A[g]; S̃) such that ‖g‖_p ≤ γ, g = ∇L(θ_m; S); A = sgn and p = 1 for Adam,
      A = g/‖g‖ and p = 2 for SGD; Adam on m, by the gradient of ‖g‖_p wherever the bound is exceeded
    Paper: Zhu et al. 2021, equation 1 and Algorithm 1; zhuchen03/gradinit (defaults of its transformer).
    Parameters: none.
    Checked against: the authors' algorithm in PyTorch, by its double backward (tests/parity).
    Certainty: primary (the authors' code); as there, the step is a constant of the derivative. Gains of norms and
      biases, which it scales as well, stay as they are. S̃ is half of S and half of the next batch.
    """
    descent = Descent(learning_rate, b2, clip)

    def direction(gradients: Gradients) -> Gradients:
        return jax.tree.map(jnp.sign, gradients) if rule == "adam" else _over_norm(gradients)

    def norm(gradients: Gradients) -> Float[Array, ""]:
        return _l1(gradients) if rule == "adam" else _l2(gradients)

    def update(
        problem: Problem, factors: Factors, state: State, tokens: Array, following: Array
    ) -> tuple[Factors, State, Array]:
        weights = problem.scaled(factors)
        gradients = problem.gradient(weights, tokens)

        def of_loss() -> Factors:
            after = jax.tree.map(lambda w, direction: w - step * direction, weights, direction(gradients))
            by_weights = problem.gradient(after, half_of_both(tokens, following))
            return jax.tree.map(lambda slope: slope / step, problem.slopes(by_weights))

        def of_norm() -> Factors:
            by_gradient = jax.grad(norm)(gradients)
            return problem.slopes(
                hessian_times(lambda weights: problem.gradient(weights, tokens), weights, by_gradient)
            )

        size = norm(gradients)
        exceeds = (size > gamma) & (gamma > 0)
        slopes = jax.lax.cond(exceeds, of_norm, of_loss) if gamma else of_loss()
        return *descent.update(factors, slopes, state, exceeds), size

    return Search(iterations, 3 if gamma else 2, descent.start, update, "norm of the gradient")


def half_of_both(tokens: Array, following: Array) -> Array:
    """A batch that has every other row of each of two."""
    is_first = jnp.arange(len(tokens)) % 2 == 0
    return jnp.where(is_first[:, None], tokens, following)


def _l1(gradients: Gradients) -> Float[Array, ""]:
    return sum((jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradients)), jnp.zeros(()))


def _l2(gradients: Gradients) -> Float[Array, ""]:
    return l2_norm(jnp.stack([l2_norm(leaf) for leaf in jax.tree.leaves(gradients)]))


def _over_norm(gradients: Gradients) -> Weights:
    norm = _l2(gradients)
    return jax.tree.map(lambda leaf: leaf / norm, gradients)
