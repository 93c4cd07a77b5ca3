"""μ-centering: the mean of the output embeddings, which no probability depends on, is taken out after every update."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxstab.optimize.projections import Projection, only_matrix
from jaxstab.table import Raw, Row, Stored, Table


def mu_centering() -> Projection:
    """Takes the mean over the vocabulary out of lm_head after every update, in place of a z-loss; untied models only.

    A softmax does not feel it, so that nothing but the optimizer's noise holds it: the logits of all tokens drift
    together. It needs one stored matrix for lm_head, gated or not.

    Formula: W_out := W_out - mean_v(W_out), one mean per input
    Paper: Stollenwerk et al. 2026 (arXiv:2601.02031), μ-centering; flxst/output-embedding-centering
    Parameters: none
    Checked against: NumPy in float64
    Certainty: secondary, by the paper's repository
    """

    def project(table: Table[Stored], raw: Raw, _: Mapping[str, Array]) -> Raw:
        lm_head = only_matrix(table, "lm_head", "mu_centering")

        def center(row: Row, stored: Array) -> Array:
            return stored - jnp.mean(stored, axis=-1, keepdims=True) if row is lm_head else stored

        return jax.tree.map(center, table, raw)

    return Projection(project)
