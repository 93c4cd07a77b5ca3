"""The optimizer: an optax chain whose learning rate and weight decay are values, not constants."""

from jaxstab.optimize.chain import (
    CLIPS,
    DECAYS,
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
from jaxstab.optimize.preconditioner import inverse_preconditioner

__all__ = [
    "CLIPS",
    "DECAYS",
    "OPTIMIZERS",
    "PROJECTIONS",
    "SCHEDULES",
    "Hypers",
    "Optimizer",
    "OptimizerConfig",
    "build",
    "inverse_preconditioner",
    "last_rate",
    "state_shardings",
]
