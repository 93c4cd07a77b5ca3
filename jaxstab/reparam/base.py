"""What a reparameterization is: a few pure functions between what is stored and what is used.

A method says what it stores in place of one matrix; `reparameterize` applies methods to a whole tree, whatever model
the tree belongs to:

    rep = reparameterize(table, wesar(sigma=0.0063))
    raw, state = rep.init(weights)                  # weights: a draw, a searched init, an imported model
    weights, state = rep.effective(raw, state)      # inside the training step, differentiable
    logits = model.apply({"params": weights}, tokens)
    weights = rep.merge(raw, state)                 # plain weights for inference

Methods compose, the first one nearest to the model: `reparameterize(table, mlra(...), wesar(...))` gates both factors.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.table import Row, Table, divided, leaves_of, like
from jaxstab.table import rows as rows_of

Weights = Any  # tree of effective weights
Raw = Any  # tree of stored parameters: a dict of arrays where a method stores several for one matrix
State = Any  # tree of untrained float32 state, () where a method keeps none
Stored = dict[str, jax.Array]


class Method(NamedTuple):
    """A reparameterization of one matrix. No function sees the layer axis: stacks are mapped over it.

    Attributes:
      applies: whether a matrix with this row is reparameterized; others are stored as they are.
      rows: the rows of what is stored for it, by name.
      init: (weight, std, key) -> (stored, state): splits an effective weight. `std` is the standard deviation it was
        drawn with, or measured; the key is for methods that draw what they store.
      effective: (stored, state) -> (weight, state'): the effective weight, differentiable, and the state of the next
        step.
    """

    applies: Callable[[Row], bool]
    rows: Callable[[Row], dict[str, Row]]
    init: Callable[[jax.Array, jax.Array, jax.Array], tuple[Stored, Any]]
    effective: Callable[[Stored, Any], tuple[jax.Array, Any]]


class Reparameterization(NamedTuple):
    """A method bound to a table, or a chain of them.

    Attributes:
      table: the table of what is stored; gates and factors are rows too.
      init: (weights, key) -> (raw, state).
      effective: (raw, state) -> (weights, state'). State advances once a training step; evaluation drops state'.
    """

    table: Table
    init: Callable[..., tuple[Raw, State]]
    effective: Callable[[Raw, State], tuple[Weights, State]]

    def merge(self, raw: Raw, state: State) -> Weights:
        """Plain weights, for inference without the reparameterization and its cost."""
        return self.effective(raw, state)[0]


def reparameterize(table: Table, *methods: Method) -> Reparameterization:
    """Binds methods to a table of effective weights; with none, weights are stored as they are."""
    links = []
    for method in methods:
        links.append(_bind(method, table))
        table = links[-1].table
    links.append(_stored_form(table))

    def init(weights: Weights, key: jax.Array | None = None) -> tuple[Raw, State]:
        states = []
        for link in links:
            weights, state = link.init(weights, jax.random.key(0) if key is None else key)
            states.append(state)
        return weights, tuple(states)

    def effective(raw: Raw, state: State) -> tuple[Weights, State]:
        states = []
        for link, old in zip(reversed(links), reversed(state), strict=True):
            raw, new = link.effective(raw, old)
            states.append(new)
        return raw, tuple(reversed(states))

    return Reparameterization(links[-1].table, init, effective)


def _bind(method: Method, table: Table) -> Reparameterization:
    """One method over every leaf of a tree; stacks are mapped over their layers."""

    def is_applied(row: Row) -> bool:
        return row.is_matrix and method.applies(row)

    def rows(row: Row) -> Any:
        if not is_applied(row):
            return row
        return {name: stored.replace(path=f"{row.path}/{name}") for name, stored in method.rows(row).items()}

    def init_leaf(row: Row, weight: jax.Array, key: jax.Array) -> Any:
        if not is_applied(row):
            return weight, ()
        key = jax.random.fold_in(key, zlib.crc32(row.path.encode()))
        if not row.stacked:
            return method.init(weight, _std(row, weight), key)
        return jax.vmap(method.init)(weight, _std(row, weight), jax.random.split(key, row.layers))

    def effective_leaf(row: Row, stored: Any, state: Any) -> Any:
        if not is_applied(row):
            return stored, state
        return (jax.vmap(method.effective) if row.stacked else method.effective)(stored, state)

    def init(weights: Weights, key: jax.Array) -> tuple[Raw, State]:
        return _unzip(table, jax.tree.map(lambda row, weight: init_leaf(row, weight, key), table, weights))

    def effective(raw: Raw, state: State) -> tuple[Weights, State]:
        return _unzip(table, jax.tree.map(effective_leaf, table, raw, state))

    return Reparameterization(jax.tree.map(rows, table), init, effective)


def _std(row: Row, weight: jax.Array) -> jax.Array:
    """The standard deviation of a matrix, or of each layer of a stack: the table's, or else measured."""
    measured = jnp.sqrt(jnp.mean(jnp.square(weight.astype(jnp.float32)), axis=(-2, -1)))
    return measured if row.std is None else jnp.broadcast_to(jnp.asarray(row.std, jnp.float32), measured.shape)


def _unzip(table: Table, pairs: Any) -> tuple[Any, Any]:
    """A tree of pairs, in the structure of `table`, as a pair of trees."""
    first, second = zip(*leaves_of(table, pairs), strict=True)
    return like(table, first), like(table, second)


def _stored_form(table: Table) -> Reparameterization:
    """The last link of every chain: constant multipliers are divided out, and a tied matrix is stored once."""
    flat = rows_of(table)
    place = {row.path: index for index, row in enumerate(flat)}
    sources = [place.get(_stored_path(row, place)) if row.tied else None for row in flat]

    def init(weights: Weights, key: jax.Array) -> tuple[Raw, State]:
        kept = [
            None if source is not None else weight if row.multiplier == 1 else weight / row.multiplier
            for row, weight, source in zip(flat, leaves_of(table, weights), sources, strict=True)
        ]
        return like(table, kept), ()

    def effective(raw: Raw, state: State) -> tuple[Weights, State]:
        leaves = leaves_of(table, raw)
        used = []
        for row, stored, source in zip(flat, leaves, sources, strict=True):
            weight = stored if source is None else leaves[source].T
            used.append(weight if row.multiplier == 1 else row.multiplier * weight)
        return like(table, used), state

    stored = [
        None if source is not None else row.replace(std=divided(row.std, row.multiplier))
        for row, source in zip(flat, sources, strict=True)
    ]
    return Reparameterization(like(table, stored), init, effective)


def _stored_path(row: Row, known: dict[str, int]) -> str:
    """Where the matrix that `row` is tied to is stored, below the same name as its own (".../weight")."""
    nested = f"{row.tied}/{row.path.rsplit('/', 1)[-1]}"
    return nested if nested in known else row.tied
