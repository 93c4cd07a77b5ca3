"""Decay rules: how update and weight decay become a step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.numerics import matrix_norm
from jaxstab.optimize.layers import is_hidden
from jaxstab.table import Row

# (row, update u, weight W, rate η_t, decay η_t λ or None for a row without, η_t/η_max) -> the step, added to W.
Decay = Callable[[Row, Array, Array, Array, Array | None, Float[Array, ""]], Array]


def decoupled() -> Decay:
    """Every matrix decays at the learning rate, as in AdamW.

    Formula: W := W - η_t (u + λ W)
    Paper: Loshchilov and Hutter 2019 (arXiv:1711.05101), Algorithm 2
    Parameters: none
    Checked against: torch.optim.AdamW
    Certainty: primary
    """
    return lambda row, u, w, rate, decay, shape: _step(rate * u, decay, w)


def adamc() -> Decay:
    """Matrices of the blocks, whose outputs meet a norm, decay by the square of the schedule.

    Where a norm follows, gradients grow as weights shrink, and a decaying rate makes both drift at the end of training;
    a decay in proportion to the rate keeps the ratio of gradient to weight. Embeddings and lm_head decay as usual.

    Formula: W := W - η_t (u + λ η_t/η_max W) in the blocks
    Paper: Defazio 2025 (arXiv:2506.02285), Algorithm 1
    Parameters: none
    Checked against: pytorch-optimizer's AdamC (tests/parity), and NumPy in float64
    Certainty: primary for the rule; which matrices count as normalised is ours: those inside the blocks
    """
    return lambda row, u, w, rate, decay, shape: _step(rate * u, decay, shape * w if row.stacked else w)


def cautious() -> Decay:
    """Only what the update moves towards zero anyway decays.

    Formula: W := W - η_t (u + λ 1[u W ≥ 0] W), entry by entry
    Paper: Chen et al. 2025 (arXiv:2510.12402), Algorithm 1
    Parameters: none
    Checked against: NumPy in float64
    Certainty: primary
    """
    return lambda row, u, w, rate, decay, shape: _step(rate * u, decay, jnp.where(u * w >= 0, w, 0.0))


def hyperball() -> Decay:
    """The norm of every hidden matrix stays what it was at initialization, and each step is η times that norm.

    The learning rate is thereby the update ratio, whatever the gradient. Hidden matrices have no weight decay; what
    isn't one, embeddings and lm_head among them, decays as usual. On matrices that store their scale elsewhere, as
    gates do, it holds the stored norm only.

    Formula: W := R normalize(W - η_t R normalize(u)), R = ‖W‖_F, one per matrix
    Paper: Wen et al. 2025 (arXiv:2606.16899), with AdamH and MuonH by the update rule
    Parameters: none
    Checked against: NumPy in float64
    Certainty: primary for the formula; whether it helps is contested
    """

    def step(row: Row, u: Array, w: Array, rate: Array, decay: Array | None, shape: Array) -> Array:
        if not is_hidden(row):
            return _step(rate * u, decay, w)
        radius = matrix_norm(row, w, keepdims=True)
        moved = w - rate * radius * _normalized(row, u)
        return radius * _normalized(row, moved) - w

    return step


def _step(moved: Array, decay: Array | None, w: Array) -> Array:
    return -(moved if decay is None else moved + decay * w)


def _normalized(row: Row, x: jax.Array) -> jax.Array:
    norm = matrix_norm(row, x, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1.0)
