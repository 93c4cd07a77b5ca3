"""Gradient clipping. Norms that aren't finite enter no running statistic."""

from __future__ import annotations

import functools
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int

from jaxstab.config import Range
from jaxstab.numerics import ZClipStatistics, matrix_norm, zclip_step
from jaxstab.optimize.layers import TransformationFactory, one_per_layer
from jaxstab.table import Table


def none() -> TransformationFactory:
    """No clipping.

    Formula: g
    Paper: none
    Parameters: none
    Checked against: the gradient itself
    Certainty: primary
    """
    return lambda _: optax.identity()


def global_norm(
    max_norm: Annotated[float, "Largest norm of the whole gradient (or update).", Range(above=0)] = 1.0,
) -> TransformationFactory:
    """Scales the whole gradient down to `max_norm` where its norm is larger.

    Formula: g · min(1, max_norm / ||g||), one norm over all parameters
    Paper: Pascanu et al. 2013 (arXiv:1211.5063), Algorithm 1
    Parameters: none
    Checked against: torch.nn.utils.clip_grad_norm_
    Certainty: primary; optax's clip_by_global_norm is what runs
    """
    return lambda _: optax.clip_by_global_norm(max_norm)


class AdaGCState(NamedTuple):
    """The number of updates, and the expected gradient norm of every matrix: float32, one entry per layer."""

    norms: Int[Array, ""]
    expected: Any


def adagc(
    ratio: Annotated[
        float, "Largest norm of a matrix's gradient, as a multiple of its running average.", Range(above=0)
    ] = 1.04,
    decay: Annotated[float, "Decay rate of the running average.", Range(0, below=1)] = 0.99,
    warmup: Annotated[
        int, "First updates, clipped by the global norm; the average starts at their least norm.", Range(0)
    ] = 100,
    max_norm: Annotated[
        float, "Largest norm of the whole gradient (or update) in the first `warmup` updates.", Range(above=0)
    ] = 1.0,
) -> TransformationFactory:
    """Clips the gradient of each matrix, in a stack too, by its own running norm; vectors and gates likewise.

    Formula: g · min(1, ratio γ / ||g||), γ' = decay γ + (1-decay) ||clipped g||, one γ per matrix; γ₀ = min over warmup
    Paper: Wang et al. 2025 (arXiv:2502.11034)
    Parameters: none; one value of state for each matrix, vector and gate of each layer
    Checked against: norms that the authors' code gives, and NumPy in float64
    Certainty: primary (the authors' code, whose ratio and decay these are; secondary sources have 1.05 and 0.98)
    """

    def init(table: Table, _: Any) -> AdaGCState:
        expected = jax.tree.map(lambda row: jnp.full(one_per_layer(row), jnp.inf, jnp.float32), table)
        return AdaGCState(jnp.zeros((), jnp.int32), expected)

    def update(table: Table, gradients: Any, state: AdaGCState, _: Any = None) -> tuple[Any, AdaGCState]:
        starting = state.norms < warmup
        whole = limiting_factor(optax.tree.norm(gradients), max_norm)
        sizes = jax.tree.map(functools.partial(matrix_norm, keepdims=True), table, gradients)

        def factor(size: Array, expected: Array) -> Array:
            return jnp.where(starting, whole, limiting_factor(size, ratio * expected))

        def average(size: Array, factor: Array, expected: Array) -> Array:
            moved = decay * jnp.where(jnp.isinf(expected), size, expected) + (1 - decay) * size * factor
            following = jnp.where(starting, jnp.minimum(expected, size * factor), moved)
            # A gradient behind a gate that is still zero is zero; expecting it would clip all later gradients to zero.
            return jnp.where(jnp.isfinite(size) & (size > 0), following, expected)

        factors = jax.tree.map(factor, sizes, state.expected)
        expected = jax.tree.map(average, sizes, factors, state.expected)
        clipped = jax.tree.map(jnp.multiply, gradients, factors)
        return clipped, AdaGCState(optax.safe_increment(state.norms), expected)

    return lambda table: optax.GradientTransformation(functools.partial(init, table), functools.partial(update, table))


def zclip(
    threshold: Annotated[
        float, "Standard deviations above the running mean at which a norm is clipped.", Range(above=0)
    ] = 2.5,
    decay: Annotated[float, "Decay rate of the running mean and variance of the norm.", Range(0, below=1)] = 0.97,
    warmup: Annotated[int, "First updates, whose norms give the first mean and variance.", Range(2)] = 25,
    max_norm: Annotated[
        float, "Largest norm of the whole gradient (or update) at any time; 0 sets none.", Range(0)
    ] = 1.0,
) -> TransformationFactory:
    """Clips the whole gradient where its norm is an outlier among those before: the larger, the harder it is clipped.

    The statistics take in the norm that the outlier rule leaves, before `max_norm` is applied.

    Formula: z = (||g|| - μ) / (s + 1e-6); where z > threshold, ||g|| := μ + threshold² s / z
    Paper: Kumar et al. 2025 (arXiv:2504.02507)
    Parameters: none; three values of state
    Checked against: norms that the authors' ZClip gives
    Certainty: primary (the authors' code, whose variance is taken about the new mean)
    """

    def init(_: Any) -> ZClipStatistics:
        return ZClipStatistics(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

    def update(gradients: Any, state: ZClipStatistics, _: Any = None) -> tuple[Any, ZClipStatistics]:
        size = optax.tree.norm(gradients)
        _, usual, following = zclip_step(state, size, threshold, decay, warmup)
        factor = limiting_factor(size, jnp.minimum(usual, max_norm) if max_norm else usual)
        next_state = jax.tree.map(functools.partial(jnp.where, jnp.isfinite(size)), following, state)
        return jax.tree.map(lambda g: g * factor, gradients), next_state

    return lambda _: optax.GradientTransformation(init, update)


def limiting_factor(size: Array, limit: ArrayLike) -> Array:
    """The factor that brings a norm down to a limit; 1 below the limit."""
    return jnp.where(size > limit, limit / size, 1.0)
