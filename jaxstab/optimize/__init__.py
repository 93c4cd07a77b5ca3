"""The optimizer: an optax chain whose learning rate and weight decay are values, not constants."""

from jaxstab.optimize.chain import (
    CLIPS,
    OPTIMIZERS,
    PROJECTIONS,
    SCHEDULES,
    Hypers,
    Optimizer,
    OptimizerConfig,
    build,
    last_rate,
    state_shardings,
)

__all__ = [
    "CLIPS",
    "OPTIMIZERS",
    "PROJECTIONS",
    "SCHEDULES",
    "Hypers",
    "Optimizer",
    "OptimizerConfig",
    "build",
    "last_rate",
    "state_shardings",
]
