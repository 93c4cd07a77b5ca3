"""The control of WeSaR: its pace for every matrix, without its gates (this project)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax

from jaxstab.config import ConfigError, Range
from jaxstab.reparam.base import Method, Stored
from jaxstab.table import Row


def rescaled_rates(
    sigma: Annotated[
        float, "The stored standard deviation whose pace is taken; WeSaR's is sqrt(4e-5).", Range(above=0)
    ] = math.sqrt(4e-5),
) -> Method:
    """Plain storage with a learning rate of its own for every matrix: that which WeSaR's gates give it.

    Formula: W̄ = W, W ~ N(0, std(W̄)²), rate α η with α = std(W̄) / σ, decay λ / α, eps ε / α
    Paper: none: Nishida et al. 2024 with fixed gates, by the invariance of Adam to the scale of its gradient.
    Parameters: none.
    Checked against: WeSaR with fixed gates, step for step (tests/reparam).
    Certainty: primary, by algebra.

    What WeSaR does beyond this is its trained gates, and the clipping of a gradient that carries them: with
    optimizer.clip_on=effective both clip alike. A matrix that begins at zero keeps the run's own rate, as its gate
    would be 1, and so does one whose standard deviation isn't known before it is there (an imported one).
    """

    def pace(row: Row) -> float:
        if not row.std:
            return 1.0
        if not isinstance(row.std, int | float):
            raise ConfigError(
                f"reparam.method=rescaled_rates needs one standard deviation for all layers of {row.path}; this "
                "init.method gives each its own"
            )
        return row.std / sigma

    def rows(row: Row) -> dict[str, Row]:
        alpha = pace(row)
        rates = {"learning_rate": row.learning_rate * alpha, "decay": row.decay / alpha, "eps": row.eps / alpha}
        return {"weight": row.replace(**rates)}

    def init(row: Row, weight: jax.Array, std: jax.Array, key: jax.Array) -> tuple[Stored, Any]:
        return {"weight": weight}, ()

    def effective(row: Row, stored: Stored, state: Any) -> tuple[jax.Array, Any]:
        return stored["weight"], state

    return Method(lambda row: row.is_matrix, rows, init, effective)
