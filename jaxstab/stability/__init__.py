"""Measurements: pure functions of what a training step holds."""

from jaxstab.stability.norms import matrix_norm, update_ratio

__all__ = ["matrix_norm", "update_ratio"]
