"""QK-Clip: a projection of the stored parameters after the update.

A projection is a pure function `(table, raw, measured) -> raw`, where the table is that of what is stored and
`measured` what the forward pass of the step gives by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.config import ConfigError, Range
from jaxstab.table import Row, Table, rows

Projection = Callable[[Table, Any, Mapping[str, Array]], Any]


def none() -> Projection:
    """No projection.

    Formula: W
    Paper: none
    Parameters: none
    Checked against: the weights themselves
    Certainty: primary
    """
    return lambda table, raw, measured: raw


def qk_clip(
    threshold: Annotated[
        float, "Largest attention logit of a head that leaves its weights as they are.", Range(above=0)
    ] = 100.0,
) -> Projection:
    """Shrinks the query and key weights of a head whose largest attention logit was above the threshold.

    It reads `measured["max_attention_logit"]` [L, H], scaled as in the softmax. Query heads that share a key head
    shrink together, by the largest logit among them. Biases of both projections shrink too. It needs weights that are
    linear in what is stored: one stored matrix for each of `q_proj` and `k_proj`, gated or not.

    Formula: W_q^h, W_k^h := √γ W^h, γ = min(1, threshold / S), S the largest logit of the heads that share a key head
    Paper: Kimi Team 2025 (arXiv:2507.20534), section 2.1
    Parameters: none
    Checked against: NumPy in float64, and the logits of the shrunk weights
    Certainty: secondary; sharing follows Megatron-LM, the paper's attention shares no key head
    """

    def project(table: Table, raw: Any, measured: Mapping[str, Array]) -> Any:
        q_proj, k_proj = (_only_matrix(table, role) for role in ("q_proj", "k_proj"))
        logit_LH = measured["max_attention_logit"]
        key_heads = k_proj.fan_out * logit_LH.shape[1] // q_proj.fan_out
        logit_LG = jnp.max(logit_LH.reshape(len(logit_LH), key_heads, -1), axis=-1)
        is_large = (logit_LG > threshold) & jnp.isfinite(logit_LG)
        root_LG = jnp.where(is_large, jnp.sqrt(threshold / logit_LG), 1.0)

        def shrink(row: Row, stored: Array) -> Array:
            if not any(_belongs(row, matrix) for matrix in (q_proj, k_proj)):
                return stored
            return stored * _columns(root_LG, stored)

        return jax.tree.map(shrink, table, raw)

    return project


def _only_matrix(table: Table, role: str) -> Row:
    found = [row for row in rows(table) if row.role == role and row.stacked]
    if len(found) != 1:
        raise ConfigError(
            f"optimizer.projection=qk_clip needs one stored, stacked matrix for {role}, not {len(found)}; "
            "use a reparameterization that stores one"
        )
    return found[0]


def _belongs(row: Row, matrix: Row) -> bool:
    """Whether a row is that matrix, or the bias next to it."""
    return row is matrix or (row.role == "bias" and matrix.path.startswith(row.path.rpartition("/")[0] + "/"))


def _columns(root_LG: Float[Array, "L G"], stored: Array) -> Array:
    """The factor of every output unit, in a shape that multiplies a stack of matrices or of biases."""
    columns = jnp.repeat(root_LG, stored.shape[-1] // root_LG.shape[1], axis=1)
    return columns.reshape(len(stored), *(1,) * (stored.ndim - 2), -1)
