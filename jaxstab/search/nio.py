"""NIO (Yang et al. 2022): scales by which the gradients of the parts of a batch agree, and are large."""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.config import Range
from jaxstab.search.base import Factors, Problem, Search, hessian_times
from jaxstab.search.descent import Descent, State
from jaxstab.table import Gradients


def nio(
    iterations: Annotated[int, "Steps of the search.", Range(1)] = 100,
    learning_rate: Annotated[float, "Of Adam on the factors.", Range(above=0)] = 3e-3,
    parts: Annotated[int, "Parts D of a batch whose gradients are compared.", Range(2)] = 4,
    gamma: Annotated[float, "Largest mean norm of their gradients.", Range(above=0)] = 10.0,
    norm_weight: Annotated[float, "Weight of the gradients' norms beside their cosine.", Range(0)] = 1.0,
    clip: Annotated[float, "Largest slope by a factor; 0 is none.", Range(0)] = 1.0,
) -> Search:
    """Factors that bring the cosine of the gradients of a batch's parts up, and their norms, below a bound.

    Formula: max over m of mean over i ≠ j of cos(g_i, g_j) + λ Σ ‖g_i‖₂ such that mean ‖g_i‖₂ ≤ γ, g_i = ∇L(θ_m; S_i),
      S_1 ... S_D the parts of S; Adam on m, by the gradient of the mean norm wherever the bound is exceeded
    Paper: Yang et al. 2022, Towards theoretically inspired neural initialization optimization; HarborYuan/GradCosine
      (gc_gn_sqrt, and its settings for ResNet-50).
    Parameters: none.
    Checked against: the authors' algorithm in PyTorch, by its double backward (tests/parity).
    Certainty: primary for the formula and the defaults (the authors' code), which are of image models. Parts that don't
      overlap are its default; gains of norms and biases, which it scales as well, stay as they are.
    """
    descent = Descent(learning_rate, 0.999, clip)

    def update(
        problem: Problem, factors: Factors, state: State, tokens: Array, following: Array
    ) -> tuple[Factors, State, Array]:
        weights = problem.scaled(factors)
        tokens_DBS = tokens.reshape(-1, parts, *tokens.shape[1:]).swapaxes(0, 1)  # rows of every device in each part
        gradients_D = jax.lax.map(lambda part: problem.gradient(weights, part), tokens_DBS)
        norms_D, mean_cosine = norms_and_cosine(gradients_D)
        exceeds = jnp.mean(norms_D) > gamma

        def lowered(gradients_D: Gradients) -> Float[Array, ""]:
            norms_D, mean_cosine = norms_and_cosine(gradients_D)
            return jnp.where(exceeds, jnp.mean(norms_D), -mean_cosine - norm_weight * jnp.sum(norms_D))

        def add(total: Gradients, part: Any) -> tuple[Gradients, None]:
            tokens, vector = part
            product = hessian_times(lambda weights: problem.gradient(weights, tokens), weights, vector)
            return jax.tree.map(jnp.add, total, product), None

        zero = jax.tree.map(jnp.zeros_like, weights)
        by_weights, _ = jax.lax.scan(add, zero, (tokens_DBS, jax.grad(lowered)(gradients_D)))
        return *descent.update(factors, problem.slopes(by_weights), state, exceeds), mean_cosine

    return Search(iterations, 3, descent.start, update, "cosine of the gradients", parts)


def norms_and_cosine(gradients_D: Gradients) -> tuple[Float[Array, " D"], Float[Array, ""]]:
    """The norms of D gradients, of which every leaf leads with D, and the mean cosine of two of them."""

    def products(leaf: Array) -> Float[Array, "D D"]:
        return jnp.einsum("dx,ex->de", *(leaf.reshape(len(leaf), -1),) * 2, precision=jax.lax.Precision.HIGHEST)

    products_DD = sum(map(products, jax.tree.leaves(gradients_D)), jnp.zeros(()))
    norms_D = jnp.sqrt(jnp.diagonal(products_DD))
    cosines_DD = products_DD / (norms_D[:, None] * norms_D)
    count = len(norms_D)
    return norms_D, (jnp.sum(cosines_DD) - jnp.trace(cosines_DD)) / (count * (count - 1))
