"""Measurements, and what guards a step: pure functions of what a training step holds."""

from jaxstab.numerics import matrix_norm
from jaxstab.stability.bounds import attention_bound, mlp_bound
from jaxstab.stability.config import StabilityConfig
from jaxstab.stability.curvature import critical_step, largest_eigenvalue, quotient
from jaxstab.stability.full import weight_statistics
from jaxstab.stability.gradients import gradient_statistics
from jaxstab.stability.guard import DEVIATIONS, Guard, advance, detector_metrics, judge, start
from jaxstab.stability.norms import gate_statistics, gates, global_norm, matrix_rms, nonfinite_fraction, update_ratio
from jaxstab.stability.sketches import moments, state_statistics, vector_statistics
from jaxstab.stability.spectra import (
    jacobian_norm,
    jacobian_spectrum,
    product_change_entropy,
    spectral_norm,
    stable_rank,
)
from jaxstab.stability.spikes import FORETELLS, deviations_over
from jaxstab.stability.step_statistics import step_statistics
from jaxstab.stability.tev import tev, tev_histogram, token_variabilities, token_variability

__all__ = [
    "DEVIATIONS",
    "FORETELLS",
    "Guard",
    "StabilityConfig",
    "advance",
    "attention_bound",
    "critical_step",
    "detector_metrics",
    "deviations_over",
    "gate_statistics",
    "gates",
    "global_norm",
    "gradient_statistics",
    "jacobian_norm",
    "jacobian_spectrum",
    "judge",
    "largest_eigenvalue",
    "matrix_norm",
    "matrix_rms",
    "mlp_bound",
    "moments",
    "nonfinite_fraction",
    "product_change_entropy",
    "quotient",
    "spectral_norm",
    "stable_rank",
    "start",
    "state_statistics",
    "step_statistics",
    "tev",
    "tev_histogram",
    "token_variabilities",
    "token_variability",
    "update_ratio",
    "vector_statistics",
    "weight_statistics",
]
