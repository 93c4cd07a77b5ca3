"""Gradient clipping."""

from __future__ import annotations

from typing import Annotated

import optax

from jaxstab.config import ConfigError


def none() -> optax.GradientTransformation:
    """No clipping."""
    return optax.identity()


def global_norm(
    max_norm: Annotated[float, "Largest norm of the whole gradient."] = 1.0,
) -> optax.GradientTransformation:
    """Scales the whole gradient down to `max_norm` where its norm is larger (Pascanu et al. 2013)."""
    if max_norm <= 0:
        raise ConfigError(f"optimizer.clip.global_norm.max_norm={max_norm} must be positive; clip.method=none is off")
    return optax.clip_by_global_norm(max_norm)
