"""Muon for the matrices inside the blocks, Adam for everything else."""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxstab.config import Range
from jaxstab.optimize.adam import B1, B2, Eps
from jaxstab.optimize.layers import TransformationFactory
from jaxstab.table import EMBEDDINGS, Row, Table


def is_hidden(row: Row) -> bool:
    """Whether a stored parameter is a matrix between hidden activations, a stack of them included."""
    return row.is_matrix and row.role not in (*EMBEDDINGS, "lm_head") and len(row.shape) == 2 + row.stacked


def muon(
    momentum: Annotated[float, "Decay rate of the momentum of the hidden matrices.", Range(0, below=1)] = 0.95,
    newton_schulz: Annotated[int, "Newton-Schulz iterations that orthogonalize it.", Range(1)] = 5,
    rms: Annotated[
        float,
        "RMS of the update of a hidden matrix: 0.2 is about AdamW's, so that its learning rate and decay serve both "
        "(Liu et al. 2025). 0 scales by sqrt(max(1, out / in)) instead (Jordan 2024), which takes another rate.",
        Range(0),
    ] = 0.2,
    b1: B1 = 0.9,
    b2: B2 = 0.95,
    eps: Eps = 1e-8,
) -> TransformationFactory:
    """Muon: the momentum of every hidden matrix is orthogonalized, layer by layer in a stack.

    Embeddings, `lm_head` and everything that isn't a matrix, gates among them, take Adam with `b1`, `b2` and `eps`.
    Momentum is Nesterov's with optax's bias correction, which gives the newest gradient a larger weight than PyTorch in
    the first steps, and the same later on; the iteration runs in float32 (PyTorch's in bfloat16).

    Where the initial scale has a learning rate of 1/m for a hidden matrix at m times the base width (mup, complete_p),
    that is for Adam, the norm of whose update grows with m. With rms=0 that of Muon's doesn't grow, and with an RMS it
    grows with √m (Yang, Simon and Bernstein 2023, arXiv:2310.17813): the rates become 1 and 1/√m.

    Formula: u = c · NS(β m̂ + (1-β) ĝ), NS(USVᵀ) ≈ UVᵀ, c = rms √max(in, out), or √max(1, out/in) with rms=0
    Paper: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); c of Liu et al. 2025 (arXiv:2502.16982)
    Parameters: none; one value of state for each hidden stored parameter, two for each other
    Checked against: torch.optim.Muon, and NumPy in float64
    Certainty: primary for the iteration and the scales; optax's scale_by_muon is what runs
    """

    def bind(table: Table) -> optax.GradientTransformation:
        paths = jax.tree_util.tree_leaves_with_path(table)
        rule_of = {path: "muon" if is_hidden(row) else "adam" for path, row in paths}
        orthogonalize = scale_by_muon(
            ns_steps=newton_schulz,
            beta=momentum,
            weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), tree),
        )
        rules = {
            "muon": optax.chain(orthogonalize, _scale_by_shape(table, rms)),
            "adam": optax.scale_by_adam(b1, b2, eps),
        }
        # By path, and not by the table's structure: optax also asks for the labels of a placeholder.
        return optax.partition(
            rules, lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: rule_of[path], tree)
        )

    return bind


def _scale_by_shape(table: Table, rms: float) -> optax.GradientTransformation:
    """From a spectral norm of 1 to an RMS of `rms`, or to the norm that depends on the shape alone; a row's learning
    rate, which is Adam's, is taken back as far as the norm doesn't grow with the width."""

    def factor(row: Row) -> float:
        if rms:
            return rms * math.sqrt(max(row.fan_in, row.fan_out) / row.learning_rate)
        return math.sqrt(max(1, row.fan_out / row.fan_in)) / row.learning_rate

    def is_masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    def scale(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u, row: u if is_masked(u) else factor(row) * u, updates, table, is_leaf=is_masked)

    return optax.stateless(scale)
