"""Token embedding variability (TEV): how far the entries of a token's embedding spread (Chung et al. 2024)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.table import Effective, Table, Weights, leaves_of, rows

ENTRIES = {"embed_tokens": -1, "lm_head": -2}  # the axis of a token's entries, in the matrices with one row per token


def token_variability(embedding: Float[Array, "V D"] | Float[Array, "D V"], axis: int = -1) -> Float[Array, " V"]:
    """TEV_i = √((1/d) Σ_j (E_ij - mean_j E_ij)²) of every token i, in float32; j runs along `axis`.

    Source: Chung et al. 2024, by an independent implementation (secondary). The standard deviation is the population's.
    Whether theirs has Bessel's correction, a factor of √(d/(d-1)), is open.
    """
    embedding = embedding.astype(jnp.float32)
    deviation = embedding - jnp.mean(embedding, axis, keepdims=True)
    return jnp.sqrt(jnp.mean(jnp.square(deviation), axis))


def token_variabilities(table: Table[Effective], weights: Weights) -> dict[str, Float[Array, " V"]]:
    """TEV_i of the matrices with one row per token, by role: embed_tokens and lm_head."""
    return {
        row.role: token_variability(weight, ENTRIES[row.role])
        for row, weight in zip(rows(table), leaves_of(table, weights), strict=True)
        if row.role in ENTRIES
    }


def tev(variability_V: Float[Array, " V"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """μ_TEV = (1/|V|) Σ_i TEV_i and σ_TEV, the standard deviation of TEV_i over tokens (Chung et al. 2024)."""
    return jnp.mean(variability_V), jnp.std(variability_V)


def tev_histogram(
    variability_V: Float[Array, " V"], bins: int = 50
) -> tuple[Float[Array, " bins"], Float[Array, " bins+1"]]:
    """The histogram of TEV over tokens, in bins of equal width from the smallest to the largest (their Figures 1, 4).

    Returns:
      counts, and the edges of the bins.
    """
    return jnp.histogram(variability_V, bins=bins)
