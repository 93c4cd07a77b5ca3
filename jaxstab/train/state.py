"""The state of a run: what a step takes and gives back."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from jaxstab import initialize, optimize, scale, stability
from jaxstab.reparam import reparameterize
from jaxstab.table import Raw, Weights, path_of, rows
from jaxstab.train.setup import Setup


class TrainState(NamedTuple):
    """Everything that a step changes. The names are those of a checkpoint's arrays.

    Attributes:
      step: number of updates done, int32.
      raw: stored parameters, float32.
      reparam: untrained state of the reparameterization, float32.
      clip, optimizer: states of the optax transformations.
      guard: what decides whether a step is taken. Once it has halted, steps change nothing until the host has answered.
    """

    step: Int[Array, ""]
    raw: Raw
    reparam: Any
    clip: Any
    optimizer: Any
    guard: stability.Guard


def init_state(setup: Setup, seed: Any) -> TrainState:
    """The state before the first step, of a seed that may be traced."""
    key = jax.random.key(seed)
    return _begun(setup, *setup.reparam.init(initialize.draw(key, setup.table), jax.random.fold_in(key, 1)))


def given_state(setup: Setup, weights: Weights) -> TrainState:
    """The state before the first step from given effective weights.

    A stored matrix is scaled by the standard deviation that its weight has, not by one that a draw would have had.
    """
    measured: Any = jax.tree.map(lambda row: row.replace(std=None), setup.table)
    key = jax.random.fold_in(jax.random.key(setup.config.train.seed), 1)
    return _begun(setup, *reparameterize(measured, *setup.methods).init(weights, key))


def wrapped_state(setup: Setup, weights: Weights) -> TrainState:
    """`given_state` on the setup's mesh."""
    begin = functools.partial(given_state, setup)
    shardings = state_shardings(setup, jax.eval_shape(begin, weights))
    return jax.jit(begin, out_shardings=shardings)(weights)


def _begun(setup: Setup, raw: Raw, reparam: Any) -> TrainState:
    optimizer = setup.optimizer
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        raw=raw,
        reparam=reparam,
        clip=optimizer.clip.init(raw),
        optimizer=optimizer.update.init(raw),
        guard=stability.start(),
    )


def state_shardings(setup: Setup, abstract: TrainState) -> Any:
    """A `TrainState` of shardings: moments lie as their parameters do, a method's vectors along their matrix, and
    everything small is on every device."""
    raw: Any = scale.shardings(setup.stored_table, setup.mesh)
    whole: Any = scale.replicated(setup.mesh)
    return TrainState(
        step=whole,
        raw=raw,
        reparam=jax.tree_util.tree_map_with_path(functools.partial(_along_matrix, setup), abstract.reparam),
        clip=optimize.state_shardings(setup.optimizer.clip, abstract.clip, raw, whole),
        optimizer=optimize.state_shardings(setup.optimizer.update, abstract.optimizer, raw, whole),
        guard=jax.tree.map(lambda _: whole, abstract.guard),
    )


def _along_matrix(setup: Setup, key_path: Any, leaf: Any) -> NamedSharding:
    """The sharding of a method's state: a vector of a matrix's inputs is split as these are."""
    path = path_of(key_path[1:])  # after the number of the method
    known = {
        row.path.removesuffix("/weight"): row for table in (setup.table, setup.stored_table) for row in rows(table)
    }
    row = known.get(path)
    if row is None or not row.is_matrix or leaf.shape != row.shape[:-1]:
        return scale.replicated(setup.mesh)
    vector = row.replace(shape=row.shape[:-1], axes=row.axes[:-1])
    return NamedSharding(setup.mesh, scale.spec(vector, setup.mesh))
