"""Token embedding variability (TEV): how far the entries of a token's embedding spread (Chung et al. 2024)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.table import Table, leaves_of, rows


def token_variability(embedding_VD: Float[Array, "V D"]) -> Float[Array, " V"]:
    """TEV_i = √((1/d) Σ_j (E_ij - mean_j E_ij)²) of every token i, in float32.

    Source: Chung et al. 2024, by an independent implementation (secondary). The standard deviation is the population's;
    whether theirs has Bessel's correction is open: it would be a factor of √(d/(d-1)).
    """
    e_VD = embedding_VD.astype(jnp.float32)
    deviation_VD = e_VD - _mean(e_VD)[:, None]
    return jnp.sqrt(_mean(jnp.square(deviation_VD)))


def _mean(x_VD: Float[Array, "V D"]) -> Float[Array, " V"]:
    """Means over D as a product: of lm_head, whose D is the slow axis, a CPU sums ten times as fast so."""
    size = x_VD.shape[-1]
    return jnp.einsum("vd,d->v", x_VD, jnp.full(size, 1 / size), precision=jax.lax.Precision.HIGHEST)


def tev(embedding_VD: Float[Array, "V D"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """μ_TEV = (1/|V|) Σ_i TEV_i and σ_TEV, the standard deviation of TEV_i over tokens (Chung et al. 2024).

    lm_head is `[D, V]`: give its transpose.
    """
    variability_V = token_variability(embedding_VD)
    return jnp.mean(variability_V), jnp.std(variability_V)


def token_matrices(table: Table, weights: Any) -> dict[str, Float[Array, "V D"]]:
    """The matrices with a row a token, by role: embed_tokens, and lm_head as its transpose."""
    found = {}
    for row, weight in zip(rows(table), leaves_of(table, weights), strict=True):
        if row.role in ("embed_tokens", "lm_head"):
            found[row.role] = weight if row.role == "embed_tokens" else weight.T
    return found


def tev_histogram(
    embedding_VD: Float[Array, "V D"], bins: int = 50
) -> tuple[Float[Array, " bins"], Float[Array, " bins+1"]]:
    """How many tokens have which TEV, in bins of equal width from the smallest to the largest (Figures 1 and 4 there).

    Returns:
      counts, and the edges of the bins.
    """
    return jnp.histogram(token_variability(embedding_VD), bins=bins)
