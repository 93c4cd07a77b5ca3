"""The optimizer: an optax chain whose learning rate and weight decay are values, not constants."""

from jaxstab.optimize.chain import CLIPS, OPTIMIZERS, SCHEDULES, Hypers, Optimizer, OptimizerConfig, build

__all__ = ["CLIPS", "OPTIMIZERS", "SCHEDULES", "Hypers", "Optimizer", "OptimizerConfig", "build"]
