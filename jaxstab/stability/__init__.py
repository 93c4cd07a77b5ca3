"""Measurements: pure functions of what a training step holds."""

from jaxstab.stability.light import light
from jaxstab.stability.norms import gates, global_norm, matrix_norm, matrix_rms, nonfinite_fraction, update_ratio
from jaxstab.stability.tev import tev, token_matrices, token_variability

__all__ = [
    "gates",
    "global_norm",
    "light",
    "matrix_norm",
    "matrix_rms",
    "nonfinite_fraction",
    "tev",
    "token_matrices",
    "token_variability",
    "update_ratio",
]
