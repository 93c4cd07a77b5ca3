"""Measurements, and what guards a step: pure functions of what a training step holds."""

from jaxstab.stability.config import StabilityConfig
from jaxstab.stability.guard import Guard, judge, start, told
from jaxstab.stability.norms import matrix_norm, update_ratio
from jaxstab.stability.spikes import deviations_over

__all__ = ["Guard", "StabilityConfig", "deviations_over", "judge", "matrix_norm", "start", "told", "update_ratio"]
