"""Token embedding variability (TEV): how far the entries of a token's embedding spread (Chung et al. 2024)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.table import Effective, Table, Weights, leaves_of, rows


def token_variability(embedding_VD: Float[Array, "V D"]) -> Float[Array, " V"]:
    """TEV_i = √((1/d) Σ_j (E_ij - mean_j E_ij)²) of every token i, in float32.

    Source: Chung et al. 2024, by an independent implementation (secondary). The standard deviation is the population's.
    Whether theirs has Bessel's correction, a factor of √(d/(d-1)), is open.
    """
    e_VD = embedding_VD.astype(jnp.float32)
    deviation_VD = e_VD - _mean(e_VD)[:, None]
    return jnp.sqrt(_mean(jnp.square(deviation_VD)))


def _mean(x_VD: Float[Array, "V D"]) -> Float[Array, " V"]:
    """Means over D as a product: for lm_head, whose D is the slow axis, that is ten times as fast as a sum on a CPU."""
    size = x_VD.shape[-1]
    return jnp.einsum("vd,d->v", x_VD, jnp.full(size, 1 / size), precision=jax.lax.Precision.HIGHEST)


def tev(embedding_VD: Float[Array, "V D"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """μ_TEV = (1/|V|) Σ_i TEV_i and σ_TEV, the standard deviation of TEV_i over tokens (Chung et al. 2024).

    lm_head is `[D, V]`: give its transpose.
    """
    variability_V = token_variability(embedding_VD)
    return jnp.mean(variability_V), jnp.std(variability_V)


def token_matrices(table: Table[Effective], weights: Weights) -> dict[str, Float[Array, "V D"]]:
    """The matrices with one row per token, by role: embed_tokens, and the transpose of lm_head."""
    matrices = {}
    for row, weight in zip(rows(table), leaves_of(table, weights), strict=True):
        if row.role in ("embed_tokens", "lm_head"):
            matrices[row.role] = weight if row.role == "embed_tokens" else weight.T
    return matrices


def tev_histogram(
    embedding_VD: Float[Array, "V D"], bins: int = 50
) -> tuple[Float[Array, " bins"], Float[Array, " bins+1"]]:
    """The histogram of TEV over tokens, in bins of equal width from the smallest to the largest (their Figures 1, 4).

    Returns:
      counts, and the edges of the bins.
    """
    return jnp.histogram(token_variability(embedding_VD), bins=bins)
