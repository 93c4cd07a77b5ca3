"""QK-Clip: query and key weights shrink where attention logits have grown too large (Kimi Team 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.config import Range
from jaxstab.optimize.projections import Projection, only_matrix
from jaxstab.table import Raw, Row, Stored, Table


def qk_clip(
    threshold: Annotated[
        float, "Largest attention logit of a head that leaves its weights as they are.", Range(above=0)
    ] = 100.0,
) -> Projection:
    """Shrinks the query and key weights of every head whose largest attention logit was above the threshold.

    It reads the maxima `max_attention_logit` [L, H], scaled as in the softmax. Query heads that share a key head shrink
    together, by the largest logit among them. Biases of q_proj and k_proj shrink too. It needs one stored matrix for
    each of `q_proj` and `k_proj`, gated or not, in which the effective matrix is linear.

    Formula: W_q^h, W_k^h := √γ W^h, γ = min(1, threshold / S), S the largest logit of the heads that share a key head
    Paper: Kimi Team 2025 (arXiv:2507.20534), section 2.1
    Parameters: none
    Checked against: NumPy in float64, and the logits of the shrunk weights
    Certainty: secondary; sharing follows Megatron-LM, the paper's attention shares no key head
    """

    def project(table: Table[Stored], raw: Raw, maxima: Mapping[str, Array]) -> Raw:
        q_proj, k_proj = (only_matrix(table, role, "qk_clip") for role in ("q_proj", "k_proj"))
        logit_LH = maxima["max_attention_logit"]
        key_heads = k_proj.fan_out * logit_LH.shape[1] // q_proj.fan_out
        logit_LG = jnp.max(logit_LH.reshape(len(logit_LH), key_heads, -1), axis=-1)
        is_large = (logit_LG > threshold) & jnp.isfinite(logit_LG)
        root_LG = jnp.where(is_large, jnp.sqrt(threshold / logit_LG), 1.0)

        def shrink(row: Row, stored: Array) -> Array:
            if not any(_belongs(row, matrix) for matrix in (q_proj, k_proj)):
                return stored
            return stored * _columns(root_LG, stored)

        return jax.tree.map(shrink, table, raw)

    return Projection(project, needs=("max_attention_logit",), shrinks=("q_proj", "k_proj"))


def _belongs(row: Row, matrix: Row) -> bool:
    """Whether a row is that matrix, or the bias next to it."""
    return row is matrix or (row.role == "bias" and matrix.path.startswith(row.path.rpartition("/")[0] + "/"))


def _columns(root_LG: Float[Array, "L G"], stored: Array) -> Array:
    """The factor of every output unit, in a shape that multiplies a stack of matrices or biases."""
    columns = jnp.repeat(root_LG, stored.shape[-1] // root_LG.shape[1], axis=1)
    return columns.reshape(len(stored), *(1,) * (stored.ndim - 2), -1)
