"""Adam."""

from __future__ import annotations

from typing import Annotated

import optax

from jaxstab.config import ConfigError


def adamw(
    b1: Annotated[float, "Decay rate of the first moment."] = 0.9,
    b2: Annotated[float, "Decay rate of the second moment."] = 0.95,
    eps: Annotated[float, "Added to the root of the second moment; no paper here states it, 1e-8 is PyTorch's."] = 1e-8,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015); decoupled weight decay (Loshchilov and Hutter 2019) follows it in every chain."""
    if not (0 <= b1 < 1 and 0 <= b2 < 1 and eps >= 0):
        raise ConfigError(f"optimizer.rule.adamw: b1={b1} and b2={b2} must be in [0, 1), eps={eps} not negative")
    return optax.scale_by_adam(b1, b2, eps)
