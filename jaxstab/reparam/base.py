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

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.config import ConfigError
from jaxstab.table import Row, Table, divided, leaves_of, like, path_of
from jaxstab.table import rows as rows_of

Weights = Any  # tree of effective weights
Raw = Any  # tree of stored parameters: a dict of arrays where a method stores several for one matrix
State = Any  # tree of untrained float32 state, () where a method keeps none
Stored = dict[str, jax.Array]


class Method(NamedTuple):
    """A reparameterization of one parameter, mostly a matrix.

    No function sees the layer axis of arrays: stacks are mapped over it. A row does have it in its shape.

    Attributes:
      applies: whether a parameter with this row is reparameterized; others are stored as they are.
      rows: row -> the rows of what is stored for it, by name.
      init: (row, weight, std, key) -> (stored, state): splits an effective weight. `std` is the standard deviation it
        was drawn with, or measured; the key is for methods that draw what they store.
      effective: (row, stored, state) -> (weight, state'): the effective weight, differentiable, and the state of the
        next step.
      kind: its place in a chain, one of KINDS.
      absorbs: whether its gate takes a matrix's constant multiplier in. Otherwise the constant stays outside, and the
        method sees neither it nor its share of the standard deviation.
      preserves: whether `init` keeps the effective weight that it is given.
      fixed_gates: whether gates take no gradient, so that only decay would move them.
      linear: whether scaling what is stored scales the effective weight; not where a norm is divided out.
      prepare: (reparam, raw, state, outputs) -> raw: a phase before the first step, given `outputs`, effective weights
        -> {path of a matrix: what it puts out on a batch, with a leading layer axis where it is stacked}.
    """

    applies: Callable[[Row], bool]
    rows: Callable[[Row], dict[str, Row]]
    init: Callable[[Row, jax.Array, jax.Array, jax.Array], tuple[Stored, Any]]
    effective: Callable[[Row, Stored, Any], tuple[jax.Array, Any]]
    kind: str = "gate"
    absorbs: bool = False
    preserves: bool = True
    linear: bool = True
    fixed_gates: bool = False
    prepare: Callable[..., Raw] | None = None


# What a method puts between the stored and the effective weight, in the order of a chain.
KINDS = {
    "none": "nothing",
    "constant": "a constant on the residual branches",
    "branch": "a gate on the residual branches",
    "factors": "several matrices in place of one",
    "gate": "a gate on the stored matrices",
}


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

    def constant(row: Row) -> float:
        return 1.0 if method.absorbs else row.multiplier

    def seen(row: Row) -> Row:
        return row.replace(std=divided(row.std, constant(row)), multiplier=row.multiplier / constant(row))

    def rows(row: Row) -> Any:
        if not method.applies(row):
            return row
        return {name: stored.replace(path=f"{row.path}/{name}") for name, stored in method.rows(seen(row)).items()}

    def init_leaf(row: Row, weight: jax.Array, key: jax.Array) -> Any:
        if not method.applies(row):
            return weight, ()
        key = jax.random.fold_in(key, zlib.crc32(row.path.encode()))
        weight = _times(1 / constant(row), weight)
        split = functools.partial(method.init, seen(row))
        if not row.stacked:
            return split(weight, _std(seen(row), weight), key)
        return jax.vmap(split)(weight, _std(seen(row), weight), jax.random.split(key, row.layers))

    def effective_leaf(row: Row, stored: Any, state: Any) -> Any:
        if not method.applies(row):
            return stored, state
        joined = functools.partial(method.effective, seen(row))
        weight, state = (jax.vmap(joined) if row.stacked else joined)(stored, state)
        return _times(constant(row), weight), state

    stored_table = jax.tree.map(rows, table)

    def init(weights: Weights, key: jax.Array) -> tuple[Raw, State]:
        raw, state = _unzip(table, jax.tree.map(lambda row, weight: init_leaf(row, weight, key), table, weights))
        _check_shapes(stored_table, raw)
        return raw, state

    def effective(raw: Raw, state: State) -> tuple[Weights, State]:
        return _unzip(table, jax.tree.map(effective_leaf, table, raw, state))

    return Reparameterization(stored_table, init, effective)


def _check_shapes(table: Table, raw: Raw) -> None:
    """Tells the author of a method where its `init` stores something else than its `rows` say."""
    said = {row.path: row.shape for row in rows_of(table)}
    made = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(raw)}
    if said != made:
        path = min(dict(said.items() ^ made.items()))
        raise ValueError(f"a method's rows say {path} {said.get(path)}, its init gives {made.get(path)}")


def _std(row: Row, weight: jax.Array) -> jax.Array:
    """The standard deviation of a parameter, or of each layer of a stack: the table's, or else measured."""
    dtype = jnp.promote_types(weight.dtype, jnp.float32)
    axes = tuple(range(int(row.stacked), weight.ndim))
    measured = jnp.sqrt(jnp.mean(jnp.square(weight.astype(dtype)), axis=axes))
    return measured if row.std is None else jnp.broadcast_to(jnp.asarray(row.std, dtype), measured.shape)


def _times(constant: float, weight: jax.Array) -> jax.Array:
    return weight if constant == 1 else constant * weight


def _unzip(table: Table, pairs: Any) -> tuple[Any, Any]:
    """A tree of pairs, in the structure of `table`, as a pair of trees."""
    first, second = zip(*leaves_of(table, pairs), strict=True)
    return like(table, first), like(table, second)


def _stored_form(table: Table) -> Reparameterization:
    """The last link of every chain: constant multipliers are divided out, and what is tied is stored once."""
    flat = rows_of(table)
    place = {row.path: index for index, row in enumerate(flat)}
    sources = [_source(row, place, flat) if row.tied else None for row in flat]

    def init(weights: Weights, key: jax.Array) -> tuple[Raw, State]:
        kept = [
            None if source is not None else _times(1 / row.multiplier, weight)
            for row, weight, source in zip(flat, leaves_of(table, weights), sources, strict=True)
        ]
        return like(table, kept), ()

    def effective(raw: Raw, state: State) -> tuple[Weights, State]:
        leaves = leaves_of(table, raw)
        used = []
        for row, stored, source in zip(flat, leaves, sources, strict=True):
            shared = stored if source is None else leaves[source].T if row.is_matrix else leaves[source]
            used.append(_times(row.multiplier, shared))
        return like(table, used), state

    stored = [
        None if source is not None else row.replace(std=divided(row.std, row.multiplier))
        for row, source in zip(flat, sources, strict=True)
    ]
    return Reparameterization(like(table, stored), init, effective)


def _source(row: Row, place: dict[str, int], flat: list[Row]) -> int:
    """Where that is which `row` is tied to: below the same name as its own (".../weight") where methods apply to both.

    Raises:
      ConfigError: the two are stored in different forms.
    """
    nested = f"{row.tied}/{row.path.rsplit('/', 1)[-1]}"
    path = nested if nested in place else row.tied
    shape = flat[place[path]].shape if path in place else ()
    if (shape[::-1] if row.is_matrix else shape) != row.shape:
        raise ConfigError(
            f"{row.path} is tied to {row.tied}, but the two are stored differently; leave both out of the "
            "reparameterization, or untie them: model.tie_embeddings=False"
        )
    return place[path]
