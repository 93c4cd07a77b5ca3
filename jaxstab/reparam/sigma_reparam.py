"""σReparam: spectral normalization with a trained gate (Zhai et al. 2023)."""

from __future__ import annotations

import math
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxstab.config import Range
from jaxstab.numerics import power_iteration, unit
from jaxstab.reparam.base import Method, Stored, directed
from jaxstab.table import Row

HIGHEST = jax.lax.Precision.HIGHEST


def sigma_reparam(
    sigma: Annotated[
        float, "Standard deviation of every stored matrix; Nishida et al.'s best: sqrt(64e-5) pre-LN.", Range(above=0)
    ] = math.sqrt(64e-5),
    gate: Annotated[
        str, "Initial gates: `norm` is σ(W₀), which keeps the backbone's weights; `one` is 1.", ("norm", "one")
    ] = "norm",
    differentiate: Annotated[bool, "Whether the gradient goes through σ(W)."] = True,
    iterations: Annotated[
        int, "Power iterations at initialization, from a random vector; 0 takes the exact singular vector.", Range(0)
    ] = 0,
) -> Method:
    """The spectral norm of every matrix is its gate: W over a running estimate of its largest singular value.

    Formula: W̄ = γ W / σ(W), σ(W) = uᵀ W v; v ← Wᵀu / ‖Wᵀu‖, u ← Wv / ‖Wv‖ once a training step, without a gradient
    Paper: Zhai et al. 2023, section 3.2; apple/ml-sigma-reparam.
    Parameters: 1 per matrix, and an untrained vector of its input size in the state.
    Checked against: PyTorch's spectral_norm and a PyTorch training of 20 steps (tests/parity), Flax's SpectralNorm and
      NumPy float64 (tests/reparam).
    Certainty: primary for the iteration; sources disagree on the two options.

    σ(W) is differentiated by default: both of the authors' implementations do so, and so do PyTorch's and Flax's
    spectral norms; only Nishida et al. 2024 (appendix C.2), of their baseline, say it isn't. The initial gate is σ(W₀)
    by default: the authors' PyTorch code, which trained their language models, has it, and a run then starts from the
    backbone's weights, like those that it is compared with. Their JAX code, their paper and Nishida et al. have 1.

    A constant multiplier (the embedding's) stays outside the gate. A stored matrix's scale changes nothing but its own
    effective learning rate. A matrix of zeros has no direction: a random one is stored, and it stays zero by its gate,
    from which it can grow. A decomposition at initialization takes minutes on a very large model: iterations=15 is
    enough for a start, and `norm` keeps the backbone's weights whatever their number.
    """

    def rows(row: Row) -> dict[str, Row]:
        return {"weight": row.replace(std=sigma), "gate": row.gate(1.0 if gate == "one" else None)}

    def init(row: Row, weight: jax.Array, std: jax.Array, key: jax.Array) -> tuple[Stored, jax.Array]:
        scaled = weight * (sigma / jnp.where(std > 0, std, 1.0))
        stored = directed(scaled, sigma, jax.random.fold_in(key, 1))
        direction = jnp.where(jnp.any(weight), weight, stored)
        u = power_vector(direction, key, iterations) if iterations else singular_vector(direction)
        norm, _ = spectral_norm(weight, u)  # as the first step will estimate it
        return {"weight": stored, "gate": jnp.ones_like(norm) if gate == "one" else norm}, u

    def effective(row: Row, stored: Stored, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        norm, u = spectral_norm(stored["weight"], u)
        norm = norm if differentiate else jax.lax.stop_gradient(norm)
        return stored["gate"] / norm * stored["weight"], u

    preserves = gate == "norm"
    return Method(lambda row: row.is_matrix, rows, init, effective, preserves=preserves, scales=preserves, linear=False)


def spectral_norm(weight: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One power iteration from the left vector `u`: the estimate of σ(W), differentiable by W, and the next u."""
    fixed = jax.lax.stop_gradient(weight)
    v, u = power_iteration(
        lambda u: jnp.matmul(u, fixed, precision=HIGHEST), lambda v: jnp.matmul(fixed, v, precision=HIGHEST), u
    )
    return jnp.einsum("i,io,o->", u, weight, v, precision=HIGHEST), u


def singular_vector(weight: jax.Array) -> jax.Array:
    """The first left singular vector, from the eigenvectors of the smaller of W Wᵀ and Wᵀ W."""
    if weight.shape[0] <= weight.shape[1]:
        return jnp.linalg.eigh(jnp.matmul(weight, weight.T, precision=HIGHEST))[1][:, -1]
    v = jnp.linalg.eigh(jnp.matmul(weight.T, weight, precision=HIGHEST))[1][:, -1]
    return unit(jnp.matmul(weight, v, precision=HIGHEST))


def power_vector(weight: jax.Array, key: jax.Array, iterations: int) -> jax.Array:
    """A left vector after that many power iterations from a random one."""
    start = unit(jax.random.normal(key, weight.shape[:1], weight.dtype))
    return jax.lax.fori_loop(0, iterations, lambda _, u: spectral_norm(weight, u)[1], start)
