"""The Jacobians of whole blocks, neighbour by neighbour."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxstab.model.transformer import Block, Transformer
from jaxstab.stability import jacobian_spectrum
from jaxstab.table import Weights


def block_jacobians(
    model: Transformer,
    weights: Weights,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"] | None = None,
    iterations: int = 30,
) -> dict[str, Array]:
    """What MSign's authors see before a failure: Jacobians that line up, block after block.

    J_l = ∂x_l/∂x_{l-1} is that of block l with its shortcuts, in float32, with the reference attention.

    - jacobian_alignment, `[L-1]`: |⟨v_{l+1}, u_l⟩|, u_l the first left singular vector of J_l and v_{l+1} the first
      right one of the next block: 1 where the one stretches what the other puts out most, so that norms multiply
    - jacobian_stable_rank, `[L]`: ‖J_l‖_F² / ‖J_l‖₂²

    Source: Ren et al. 2026 (arXiv:2602.01734). Certainty: secondary; their stable rank is that of weights, which full
    measurements have as `stable_rank`.

    Args:
      model: its config is taken, but for the compute dtype, rematerialisation and attention.
      weights: effective weights.
      tokens_BT, segments_BT: sequences, and their document numbers where attention stays inside documents.
      iterations: of the power iterations. Vectors take more than values where the first singular values lie close.
    """
    config = dataclasses.replace(model.config, dtype="float32", remat="none", attention="xla")
    x_BTD, rotary_2TK = Transformer(config).apply({"params": weights}, tokens_BT, method="embedded")

    def layer(carry: tuple[Array, Array], numbered: Any) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (x_BTD, before_BTD), (number, own) = carry, numbered

        def block(x_BTD: Array) -> Array:
            return Block(config).apply({"params": own}, x_BTD, number, rotary_2TK, segments_BT)[0]

        after_BTD, spectrum = jacobian_spectrum(block, x_BTD, jax.random.key(0), iterations)
        alignment = jnp.abs(jnp.sum(before_BTD * spectrum.right))
        return (after_BTD, spectrum.left), (alignment, spectrum.stable_rank)

    numbered = jnp.arange(1.0, config.layers + 1), weights["layers"]
    _, (alignment_L, stable_rank_L) = jax.lax.scan(layer, (x_BTD, jnp.zeros_like(x_BTD)), numbered)
    statistics = {"jacobian_stable_rank": stable_rank_L}
    return statistics | ({"jacobian_alignment": alignment_L[1:]} if config.layers > 1 else {})
