"""The norms of `model.norm`, and what has been tried in their place. Each function is given how a gain is declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.numerics import widened

if TYPE_CHECKING:
    from jaxstab.model.config import ModelConfig

SCALAR: Callable[..., Any] = nn.with_logical_partitioning(nn.initializers.zeros, ())


class Pointwise(nn.Module):
    """γ f(α x + s) + β in float32, of every entry by itself; the table has the initial values."""

    function: Callable[[Array], Array]
    declared: Callable[..., Any]
    dtype: Any
    shifts: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        z = self.param("alpha", SCALAR, ()) * widened(x)
        z = z + self.param("shift", SCALAR, ()) if self.shifts else z
        scale, bias = (self.param(name, self.declared, x.shape[-1:]) for name in ("scale", "bias"))
        return (scale * self.function(z) + bias).astype(self.dtype)


def rmsnorm(config: ModelConfig, declared: Callable[..., Any], name: str | None) -> nn.Module:
    """Every token's entries over their root mean square; Flax computes it in float32 whatever the dtype.

    Formula: γ x / √(mean(x²) + eps)
    Paper: Zhang and Sennrich 2019 (arXiv:1910.07467), equation 4.
    Parameters: a gain per entry.
    Checked against: NumPy float64 (tests/model).
    Certainty: primary; Flax's RMSNorm is what runs.
    """
    return nn.RMSNorm(config.norm_eps, config.dtype, scale_init=declared, name=name)


def layernorm(config: ModelConfig, declared: Callable[..., Any], name: str | None) -> nn.Module:
    """Every token's entries less their mean, over their standard deviation, in float32.

    Formula: γ (x - mean(x)) / √(var(x) + eps) + β, β with `model.bias` alone
    Paper: Ba et al. 2016 (arXiv:1607.06450).
    Parameters: a gain per entry, and a bias with `model.bias`.
    Checked against: NumPy float64 (tests/model).
    Certainty: primary; Flax's LayerNorm is what runs.
    """
    return nn.LayerNorm(
        config.norm_eps,
        config.dtype,
        use_bias=config.bias,
        use_fast_variance=False,
        scale_init=declared,
        bias_init=declared,
        name=name,
    )


def dyt(config: ModelConfig, declared: Callable[..., Any], name: str | None) -> nn.Module:
    """Dynamic tanh: every entry is squashed by itself, and no token's scale is divided out.

    A control: nanochat found it worse, and at 64M parameters and 118M tokens it was 18.8% above LayerNorm
    (arXiv:2604.23434). For Llama the authors tune α₀ by width, and scale the embedding; 0.5 is what they begin with
    elsewhere.

    Formula: γ tanh(α x) + β, α₀ = `model.norm_alpha`
    Paper: Zhu et al. 2025 (arXiv:2503.10622), equation 1.
    Parameters: a gain and a bias per entry, one α.
    Checked against: PyTorch in float64, value and gradients (tests/parity), and NumPy float64 (tests/model).
    Certainty: secondary.
    """
    return Pointwise(jnp.tanh, declared, config.dtype, name=name)


def derf(config: ModelConfig, declared: Callable[..., Any], name: str | None) -> nn.Module:
    """Dynamic erf: as dynamic tanh, with the error function and a shift that all entries share.

    A control, as dynamic tanh is.

    Formula: γ erf(α x + s) + β, α₀ = `model.norm_alpha`, s₀ = 0
    Paper: Chen et al. 2025 (arXiv:2512.10938).
    Parameters: a gain and a bias per entry, one α, one s.
    Checked against: PyTorch in float64, value and gradients (tests/parity), and NumPy float64 (tests/model).
    Certainty: secondary.
    """
    return Pointwise(jax.lax.erf, declared, config.dtype, shifts=True, name=name)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "rmsnorm": rmsnorm,
    "layernorm": layernorm,
    "dyt": dyt,
    "derf": derf,
}
POINTWISE = ("dyt", "derf")
