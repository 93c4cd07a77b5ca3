"""Measurements, and what guards a step: pure functions of what a training step holds."""

from jaxstab.stability.config import StabilityConfig
from jaxstab.stability.guard import Guard, judge, start, told
from jaxstab.stability.light import light
from jaxstab.stability.norms import gates, global_norm, matrix_norm, matrix_rms, nonfinite_fraction, update_ratio
from jaxstab.stability.spikes import deviations_over
from jaxstab.stability.tev import tev, token_matrices, token_variability

__all__ = [
    "Guard",
    "StabilityConfig",
    "deviations_over",
    "gates",
    "global_norm",
    "judge",
    "light",
    "matrix_norm",
    "matrix_rms",
    "nonfinite_fraction",
    "start",
    "tev",
    "token_matrices",
    "token_variability",
    "told",
    "update_ratio",
]
