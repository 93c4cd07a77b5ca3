"""The matrix that an adaptive update rule divides its momentum by, read off the rule itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxstab.optimize.chain import Optimizer
from jaxstab.table import RawGradients, Row, Stored, Table


def inverse_preconditioner(
    optimizer: Optimizer, table: Table[Stored], clipped_raw_gradients: RawGradients, state: Any
) -> RawGradients:
    """P⁻¹ of a step, entry by entry: the update, at a learning rate of 1, is P⁻¹ times the first moment.

    It is the derivative of the rule's update by its first moment, at the second moment that the step has. For Adam
    P = (1 - b1^t) diag(√v̂ + eps), as Cohen et al. 2022 (arXiv:2207.14484) and Bai et al. 2025 (arXiv:2506.04805)
    define it. Multipliers of learning rate and eps are in it; weight decay and the clip of updates are not.

    Args:
      optimizer: of a rule that keeps both moments of every entry, with b1 above 0.
      table: rows of the stored parameters.
      clipped_raw_gradients: that the step's rule takes.
      state: of `optimizer.update` before the step.
    """
    links = state[:2]  # those of the rule

    def respond(mu: Any) -> tuple[Any, Any]:
        updates, after = optimizer.rule.update(clipped_raw_gradients, optax.tree.set(links, mu=mu))
        return updates, optax.tree.get(after, "mu")

    mu = optax.tree.get(links, "mu")
    _, (of_update, of_moment) = jax.jvp(respond, (mu,), (jax.tree.map(jnp.ones_like, mu),))

    def leaf(row: Row, of_update: jax.Array, of_moment: jax.Array) -> jax.Array:
        return row.learning_rate * of_update / of_moment

    return jax.tree.map(leaf, table, of_update, of_moment)
