"""Decay rules: what weight decay pulls at, once the update rule has spoken."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.table import Row

# (row, update, weight, fraction of the peak learning rate) -> what is scaled by rate and weight decay and taken off.
# An update points uphill: rate times it is taken off, too.
Decay = Callable[[Row, Array, Array, Float[Array, ""]], Array]


def decoupled() -> Decay:
    """Every matrix decays at the learning rate, as in AdamW.

    Formula: W := W - η_t (u + λ W)
    Paper: Loshchilov and Hutter 2019 (arXiv:1711.05101), Algorithm 2
    Parameters: none
    Checked against: torch.optim.AdamW
    Certainty: primary
    """
    return lambda row, update, weight, shape: weight


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
    return lambda row, update, weight, shape: shape * weight if row.stacked else weight


def cautious() -> Decay:
    """Only what the update moves towards zero anyway decays.

    Formula: W := W - η_t (u + λ 1[u W ≥ 0] W), entry by entry
    Paper: Chen et al. 2025 (arXiv:2510.12402), Algorithm 1
    Parameters: none
    Checked against: NumPy in float64
    Certainty: primary
    """

    def pull(row: Row, update: jax.Array, weight: jax.Array, shape: Array) -> Array:
        return jnp.where(update * weight >= 0, weight, 0.0)

    return pull
