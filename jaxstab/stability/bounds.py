"""Upper bounds on the Jacobians of a pre-norm block (Takase et al. 2025, Spike No More)."""

from __future__ import annotations

import math
from typing import TypeVar

from jaxtyping import Array, Float

Number = TypeVar("Number", float, Float[Array, "*L"])  # of one layer, or a value per layer


def mlp_bound(std_1: Number, std_2: Number, std_x: Number, width: int, mlp_width: int) -> Number:
    """‖∂y/∂x'‖₂ <= 1 + (s_1 s_2 / s_x') (√d + √d_ffn)² for y = x' + W_2 F(W_1 N(x')).

    Source: Takase et al. 2025, equation 15. It assumes independent normal entries, so that a matrix's spectral norm is
    s (√d_in + √d_out), and that F is the identity; GELU, whose slope reaches 1.13, may exceed the bound by as much.

    Args:
      std_1, std_2: standard deviations of up_proj and down_proj.
      std_x: standard deviation of the shortcut that enters the branch.
      width, mlp_width: d and d_ffn.
    """
    return 1 + std_1 * std_2 / std_x * (math.sqrt(width) + math.sqrt(mlp_width)) ** 2


def attention_bound(std_o: Number, std_x: Number, heads_norm: Number, width: int) -> Number:
    """‖∂x'/∂x‖₂ <= 1 + (s_O / s_x) 2 √d ‖J^Z‖₂ for x' = x + W_O Z(N(x)).

    Source: Takase et al. 2025, equation 20, with the assumptions of equation 15.

    Args:
      std_o: standard deviation of o_proj.
      std_x: standard deviation of the shortcut that enters the branch.
      heads_norm: ‖J^Z‖₂, the spectral norm of the Jacobian of the concatenated heads by the normed shortcut.
      width: d.
    """
    return 1 + std_o / std_x * 2 * math.sqrt(width) * heads_norm
