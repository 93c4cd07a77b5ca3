"""The variance of what matrices read, where every matrix puts out unit variance: by rule, without a forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.config import build_method
from jaxstab.model.activations import ACTIVATIONS
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EMBEDDINGS, Embedding
from jaxstab.model.layers import norm_layer
from jaxstab.model.norms import Pointwise
from jaxstab.model.placements import PLACEMENTS, Branch, Placement
from jaxstab.table import Std

Z = np.linspace(-8, 8, 2001)  # where integrals over N(0, 1) are taken
DENSITY = np.exp(-(Z**2) / 2) / math.sqrt(2 * math.pi)


def variances_read(config: ModelConfig) -> dict[str, Std]:
    """The mean square of what the matrices of a role read, or one for each layer.

    Matrices and embeddings put out unit variance, sums add up variances, and attention keeps that of its values
    (Bingham and Miikkulainen 2021, section 3, in whose code a layer that it doesn't know keeps it).
    """
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        attention, mlp, last = _along_the_shortcut(config)
        return {
            **dict.fromkeys(("q_proj", "k_proj", "v_proj", "g_proj"), attention),
            **dict.fromkeys(("gate_proj", "up_proj"), mlp),
            "o_proj": 1.0 if config.attention_gate == "none" else mean_square(jax.nn.sigmoid),
            "down_proj": _activated(config),
            "lm_head": last,
        }


def _along_the_shortcut(config: ModelConfig) -> tuple[Std, Std, float]:
    """What attention and the MLP read in each layer, and lm_head, by the model's own placement and embedding.

    These are given vectors in place of activations: what is independent is orthogonal, so that the square of a sum's
    length is the sum of the variances.
    """
    placement: Placement = build_method(config.norm_placement, PLACEMENTS)
    embedding: Embedding = build_method(config.embedding, EMBEDDINGS)
    sources: Any = iter(np.eye(2 * config.layers + 2))

    def norm(x: Any) -> Any:
        return x * math.sqrt(_normed(config, _variance(x)) / _variance(x))

    def branch(layer: Any, variances: list[float]) -> Branch:
        def f(x: Any) -> Any:
            variances.append(_variance(x))
            return next(sources)

        return Branch(f, norm, lambda x: placement.gain(config.layers) * norm(x), layer, config.layers)

    attention: list[float] = []
    mlp: list[float] = []
    x = embedding.apply(embedding.multiplier(1.0, config.width) * next(sources), norm)
    x = x + next(sources) if config.positions == "learned" else x
    for layer in range(1, config.layers + 1):
        for variances in (attention, mlp):
            x = placement.join(branch(float(layer), variances), x)
    last = _variance(norm(x) if placement.final_norm else x)
    return _once(attention), _once(attention if config.parallel else mlp), last


def _variance(x: Any) -> float:
    return float(x @ x)


def _normed(config: ModelConfig, variance: float) -> float:
    """The mean square of what a norm puts out, or what stands in its place, of N(0, variance)."""
    norm = norm_layer(config)
    if not isinstance(norm, Pointwise):
        return 1.0
    return mean_square(lambda z: norm.function(config.norm_alpha * math.sqrt(variance) * z))


def _once(variances: list[float]) -> Std:
    """One number for layers that are all alike."""
    return variances[0] if np.allclose(variances, variances[0]) else tuple(variances)


def _activated(config: ModelConfig) -> float:
    """E f(z)² of the MLP's activation, times that of the other factor where the MLP is gated; both may be clamped."""
    activation, bound = ACTIVATIONS[config.mlp], config.mlp_clamp or math.inf
    if config.mlp != "swiglu":
        return mean_square(activation)
    return mean_square(lambda z: activation(jnp.clip(z, -bound, bound))) * mean_square(
        lambda z: jnp.clip(z, -bound, bound)
    )


def mean_square(function: Callable[[Any], Any]) -> float:
    """E f(z)², z ~ N(0, 1), by the trapezoidal rule."""
    return float(np.trapezoid(np.square(np.float64(function(jnp.asarray(Z)))) * DENSITY, Z))
