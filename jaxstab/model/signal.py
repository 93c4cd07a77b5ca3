"""The variance of what matrices read, where every matrix puts out unit variance: by rule, without a forward pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.config import build_method
from jaxstab.model.activations import ACTIVATIONS
from jaxstab.model.config import ModelConfig
from jaxstab.model.placements import PLACEMENTS, Branch, Placement
from jaxstab.table import Std


@dataclasses.dataclass(frozen=True)
class Signal:
    """An activation of mean 0 by its variance: what a norm placement can be asked with in place of an array."""

    variance: float
    dtype: str = "float32"

    def __add__(self, other: Signal) -> Signal:
        return Signal(self.variance + other.variance)

    def __rmul__(self, constant: float) -> Signal:
        return Signal(float(constant) ** 2 * self.variance)

    def __truediv__(self, constant: Any) -> Signal:
        return Signal(self.variance / float(constant) ** 2)

    def astype(self, dtype: str) -> Signal:
        return self


def variances_read(config: ModelConfig) -> dict[str, Std]:
    """The mean square of what the matrices of a role read, or one for each layer.

    Matrices and embeddings put out unit variance, norms too, sums add up variances, and attention keeps that of its
    values (Bingham and Miikkulainen 2021, section 3, in whose code a layer that it doesn't know keeps it).
    """
    attention, mlp, last = _branches(config)
    gates = _mean_square(jax.nn.sigmoid) if config.attention_gate != "none" else 1.0
    return {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "g_proj"), attention),
        **dict.fromkeys(("gate_proj", "up_proj"), mlp),
        "o_proj": gates,
        "down_proj": _activated(config),
        "lm_head": last,
    }


def _branches(config: ModelConfig) -> tuple[Std, Std, float]:
    """What attention and the MLP read in each layer, and lm_head."""
    placement: Placement = build_method(config.norm_placement, PLACEMENTS)
    reads: tuple[list[float], list[float]] = ([], [])
    shortcut = Signal(2.0 if config.positions == "learned" else 1.0)

    def branch_of(variances: list[float], layer: float) -> Branch:
        def f(x: Any) -> Any:
            variances.append(x.variance)
            return Signal(1.0)

        def after(x: Any) -> Any:
            return Signal(placement.gain(config.layers) ** 2)

        return Branch(f, lambda x: cast(Any, Signal(1.0)), after, cast(Any, layer), config.layers)

    with jax.ensure_compile_time_eval():
        for layer in range(1, config.layers + 1):
            for variances in reads:
                shortcut = cast(Any, placement.join)(branch_of(variances, float(layer)), shortcut)
    last = 1.0 if placement.final_norm else shortcut.variance
    return _once(reads[0]), _once(reads[1]), last


def _once(variances: list[float]) -> Std:
    """One number for layers that are all alike."""
    return variances[0] if len(set(variances)) == 1 else tuple(variances)


def _activated(config: ModelConfig) -> float:
    """E f(z)² of the MLP's activation, z ~ N(0, 1), times that of the other factor where the MLP is gated."""
    activation = ACTIVATIONS[config.mlp]
    if config.mlp != "swiglu":
        return _mean_square(activation)
    if not config.mlp_clamp:
        return _mean_square(activation)
    return _clamped(activation, config.mlp_clamp) * _clamped(lambda z: z, config.mlp_clamp)


def _clamped(function: Callable[[Any], Any], bound: float) -> float:
    return _mean_square(lambda z: function(jnp.clip(z, -bound, bound)))


@functools.lru_cache(maxsize=32)
def _mean_square(function: Callable[[Any], Any]) -> float:
    """E f(z)², z ~ N(0, 1), by the trapezoidal rule from -8 to 8."""
    z = np.linspace(-8, 8, 2001)
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        values = np.asarray(function(jnp.asarray(z)))
    return float(np.trapezoid(values**2 * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), z))
