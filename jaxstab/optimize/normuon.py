"""NorMuon: Muon, whose orthogonalized update is divided by a second moment of each output unit."""

from __future__ import annotations

import functools
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxstab.config import Range
from jaxstab.numerics import l2_norm
from jaxstab.optimize.adam import B1, B2, Eps
from jaxstab.optimize.heads import PerHead, heads_apart
from jaxstab.optimize.layers import TransformationFactory, is_hidden
from jaxstab.optimize.muon import (
    Coefficients,
    Momentum,
    NewtonSchulz,
    Rms,
    orthogonalize,
    partitioned,
    scale_by_shape,
)
from jaxstab.table import Row, Table

EPS = 1e-10


def normuon(
    momentum: Momentum = 0.95,
    newton_schulz: NewtonSchulz = 5,
    coefficients: Coefficients = "quintic",
    unit_decay: Annotated[float, "Decay rate of the second moment of an output unit.", Range(0, below=1)] = 0.95,
    rms: Rms = 0.2,
    per_head: PerHead = False,
    b1: B1 = 0.9,
    b2: B2 = 0.95,
    eps: Eps = 1e-8,
) -> TransformationFactory:
    """Muon, in whose update no output unit moves much more than the others for long.

    Formula: o = Muon's; v := β v + (1-β) mean_in(o²) for each output unit; o / √v, scaled back to ‖o‖_F
    Paper: Li et al. 2025 (arXiv:2510.05491), Algorithm 1
    Parameters: none; one value of state for each hidden stored parameter and each of its output units, two for others
    Checked against: pytorch-optimizer's NorMuon (tests/parity), and NumPy in float64
    Certainty: primary for the normalisation, as the authors' code has it; scale and momentum are those of `muon` here
    """
    rule = orthogonalize(momentum, newton_schulz, coefficients)

    def bind(table: Table) -> optax.GradientTransformation:
        orthogonalized = heads_apart(table, rule) if per_head else rule
        scaled = scale_by_shape(table, rms, per_head)
        hidden = optax.chain(orthogonalized, _normalize_units(table, unit_decay), scaled)
        return partitioned(table, hidden, b1, b2, eps)

    return bind


class UnitMoments(NamedTuple):
    """The second moment of the update of every output unit, in as many axes as its matrix has."""

    moments: Any


def _normalize_units(table: Table, decay: float) -> optax.GradientTransformation:
    def init(_: Any) -> UnitMoments:
        def zeros(row: Row) -> Any:
            return jnp.zeros((*row.shape[:-2], 1, row.fan_out)) if is_hidden(row) else optax.MaskedNode()

        return UnitMoments(jax.tree.map(zeros, table))

    norm = functools.partial(l2_norm, axis=(-2, -1), keepdims=True)

    def update(updates: Any, state: UnitMoments, _: Any = None) -> tuple[Any, UnitMoments]:
        def advance(u: Array, moment: Array) -> Array:
            return decay * moment + (1 - decay) * jnp.mean(jnp.square(u), -2, keepdims=True)

        def normalize(u: Array, moment: Array) -> Array:
            scaled = u / (jnp.sqrt(moment) + EPS)
            return scaled * norm(u) / (norm(scaled) + EPS)

        moments = jax.tree.map(advance, updates, state.moments)
        return jax.tree.map(normalize, updates, moments), UnitMoments(moments)

    return optax.GradientTransformation(init, update)
