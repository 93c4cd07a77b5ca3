"""Upper bounds on the Jacobians of a pre-norm block (Takase et al. 2025, Spike No More)."""

from __future__ import annotations

import math

from jaxtyping import Array, Float


def mlp_bound(
    std_1: Float[Array, "*L"], std_2: Float[Array, "*L"], std_x: Float[Array, "*L"], width: int, mlp_width: int
) -> Float[Array, "*L"]:
    """‖∂y/∂x'‖₂ <= 1 + (s_1 s_2 / s_x') (√d + √d_ffn)² for y = x' + W_2 F(W_1 N(x')).

    Source: Takase et al. 2025, equation 15. It assumes independent normal entries, so that a matrix's spectral norm is
    s (√d_in + √d_out), and that F is the identity; GELU, whose slope reaches 1.13, may exceed the bound by as much.

    Args:
      std_1, std_2: standard deviations of up_proj and down_proj.
      std_x: standard deviation of the shortcut that enters the branch.
      width, mlp_width: d and d_ffn.
    """
    return 1 + std_1 * std_2 / std_x * (math.sqrt(width) + math.sqrt(mlp_width)) ** 2


def attention_bound(
    std_o: Float[Array, "*L"], std_x: Float[Array, "*L"], heads_norm: Float[Array, "*L"], width: int
) -> Float[Array, "*L"]:
    """‖∂x'/∂x‖₂ <= 1 + (s_O / s_x) 2 √d ‖J^Z‖₂ for x' = x + W_O Z(N(x)).

    Source: Takase et al. 2025, equation 20, with the assumptions of equation 15.

    Args:
      std_o: standard deviation of o_proj.
      std_x: standard deviation of the shortcut that enters the branch.
      heads_norm: ‖J^Z‖₂, the spectral norm of the Jacobian of the concatenated heads by the normed shortcut.
      width: d.
    """
    return 1 + std_o / std_x * 2 * math.sqrt(width) * heads_norm
