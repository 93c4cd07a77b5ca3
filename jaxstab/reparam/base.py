"""What a reparameterization is: pure functions between stored parameters and effective weights.

A method describes what it stores in place of one matrix. `reparameterize` applies methods to a whole tree of weights,
of any model:

    rep = reparameterize(table, wesar(sigma=0.0063))
    raw, state = rep.init(weights)                  # weights: a draw, a searched init, an imported model
    weights, state = rep.effective(raw, state)      # inside the training step, differentiable
    logits = model.apply({"params": weights}, tokens)
    weights = rep.merge(raw, state)                 # plain weights for inference

Methods compose, and the first is the one nearest to the model: `reparameterize(table, mlra(...), wesar(...))` gives
both factors a gate.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxstab import table as tables
from jaxstab.config import ConfigError
from jaxstab.numerics import layer_axes, rms
from jaxstab.table import Effective, Raw, Row, Table, Weights, divided, leaves_of, like, path_of
from jaxstab.table import rows as rows_of

State = Any  # tree of untrained float32 state, () where a method keeps none
Stored = dict[str, jax.Array]  # what a method stores for one parameter, by name


class Method(NamedTuple):
    """A reparameterization of one parameter, which is mostly a matrix.

    Arrays come without the layer axis, since stacks are mapped over it. The shape of a row has it.

    Attributes:
      applies: whether a parameter with this row is reparameterized; others are stored as they are.
      rows: row -> the rows of what is stored for it, by name.
      init: (row, weight, std, key) -> (stored, state): splits an effective weight. `std` is the standard deviation it
        was drawn with, or measured; the key is for methods that draw what they store.
      effective: (row, stored, state) -> (weight, state'): the effective weight, differentiable, and the state of the
        next step.
      kind: its place in a chain, one of KINDS.
      absorbs: whether its gate takes in a matrix's constant multiplier. Otherwise the constant stays outside, and the
        row, the weight and the standard deviation that the method is given are without it.
      preserves: whether `init` keeps the effective weight that it is given.
      scales: whether the effective weight's scale is that of the weight given to `init`, as it is where it's preserved.
      fixed_gates: whether gates take no gradient, so that only decay would move them.
      linear: whether scaling what is stored scales the effective weight; False where a norm is divided out.
      prepare: (reparam, raw, state, moments) -> raw: a phase before the first step. `moments` is a function, effective
        weights -> {path of a matrix: moments of what it puts out on a batch, led by a layer axis where it is stacked}.
    """

    applies: Callable[[Row], bool]
    rows: Callable[[Row], dict[str, Row]]
    init: Callable[[Row, jax.Array, jax.Array, jax.Array], tuple[Stored, Any]]
    effective: Callable[[Row, Stored, Any], tuple[jax.Array, Any]]
    kind: str = "gate"
    absorbs: bool = False
    preserves: bool = True
    scales: bool = True
    linear: bool = True
    fixed_gates: bool = False
    prepare: Callable[..., Raw] | None = None

    @property
    def constant(self) -> bool:
        """Whether the effective weight is what is stored times a constant, so that both change by the same ratio."""
        return self.kind in ("none", "constant")


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
      effective: (raw, state) -> (weights, state'). State advances once per training step; evaluation drops state'.
      constant: whether every effective weight is what is stored times a constant.
    """

    table: Table[tables.Stored]
    init: Callable[..., tuple[Raw, State]]
    effective: Callable[[Raw, State], tuple[Weights, State]]
    constant: bool

    def merge(self, raw: Raw, state: State) -> Weights:
        """Plain weights, for inference without the reparameterization and its cost."""
        return self.effective(raw, state)[0]


def reparameterize(table: Table[Effective], *methods: Method) -> Reparameterization:
    """Binds methods to a table of effective weights; with none, weights are stored as they are."""
    links, inner = [], cast(Table[Any], table)
    for method in methods:
        links.append(_bind(method, inner))
        inner = links[-1].table
    links.append(_storage(inner))

    def init(weights: Weights, key: jax.Array | None = None) -> tuple[Raw, State]:
        tree, states = cast(Any, weights), []
        for link in links:
            tree, state = link.init(tree, jax.random.key(0) if key is None else key)
            states.append(state)
        return tree, tuple(states)

    @jax.named_scope("reparam")
    def effective(raw: Raw, state: State) -> tuple[Weights, State]:
        tree, states = cast(Any, raw), []
        for link, old in zip(reversed(links), reversed(state), strict=True):
            tree, new = link.effective(tree, old)
            states.append(new)
        return tree, tuple(reversed(states))

    return Reparameterization(links[-1].table, init, effective, all(link.constant for link in links))


def _bind(method: Method, table: Table[Any]) -> Reparameterization:
    """One method over every leaf of a tree; stacks are mapped over their layers."""

    def constant(row: Row) -> float:
        return 1.0 if method.absorbs else row.multiplier

    def without_constant(row: Row) -> Row:
        return row.replace(std=divided(row.std, constant(row)), multiplier=row.multiplier / constant(row))

    def rows(row: Row) -> Any:
        if not method.applies(row):
            return row
        return {
            name: stored.replace(path=f"{row.path}/{name}")
            for name, stored in method.rows(without_constant(row)).items()
        }

    def init_leaf(row: Row, weight: jax.Array, key: jax.Array) -> Any:
        if not method.applies(row):
            return weight, ()
        key = jax.random.fold_in(key, zlib.crc32(row.path.encode()))
        weight = _times(1 / constant(row), weight)
        split = functools.partial(method.init, without_constant(row))
        if not row.stacked:
            return split(weight, _std(without_constant(row), weight), key)
        return jax.vmap(split)(weight, _std(without_constant(row), weight), jax.random.split(key, row.layers))

    def effective_leaf(row: Row, stored: Any, state: Any) -> Any:
        if not method.applies(row):
            return stored, state
        joined = functools.partial(method.effective, without_constant(row))
        weight, state = (jax.vmap(joined) if row.stacked else joined)(stored, state)
        return _times(constant(row), weight), state

    stored_table = jax.tree.map(rows, table)

    def init(weights: Weights, key: jax.Array) -> tuple[Raw, State]:
        raw, state = _unzip(table, jax.tree.map(lambda row, weight: init_leaf(row, weight, key), table, weights))
        _check_shapes(stored_table, raw)
        return raw, state

    def effective(raw: Raw, state: State) -> tuple[Weights, State]:
        return _unzip(table, jax.tree.map(effective_leaf, table, raw, state))

    return Reparameterization(stored_table, init, effective, method.constant)


def _check_shapes(table: Table[tables.Stored], raw: Raw) -> None:
    """Raises a ValueError, for the author of a method, where its `init` stores something else than its `rows` say."""
    declared = {row.path: row.shape for row in rows_of(table)}
    stored = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(raw)}
    if declared != stored:
        path = min(dict(declared.items() ^ stored.items()))
        raise ValueError(f"a method's rows say {path} {declared.get(path)}, its init gives {stored.get(path)}")


def _std(row: Row, weight: jax.Array) -> jax.Array:
    """The standard deviation of a parameter, or of each layer of a stack: the table's, or else measured."""
    measured = rms(weight, layer_axes(row, weight))
    return measured if row.std is None else jnp.broadcast_to(jnp.asarray(row.std, measured.dtype), measured.shape)


def directed(weight: jax.Array, std: float, key: jax.Array, axis: int | None = None) -> jax.Array:
    """A stored weight that has a direction everywhere, for methods that divide its norm out.

    What is zero, along the axis or as a whole, is drawn from N(0, std²) instead.
    """
    drawn = std * jax.random.normal(key, weight.shape, weight.dtype)
    return jnp.where(jnp.any(weight, axis, keepdims=True), weight, drawn)


def _times(constant: float, weight: jax.Array) -> jax.Array:
    return weight if constant == 1 else constant * weight


def _unzip(table: Table, pairs: Any) -> tuple[Any, Any]:
    """A tree of pairs, in the structure of `table`, as a pair of trees."""
    first, second = zip(*leaves_of(table, pairs), strict=True)
    return like(table, first), like(table, second)


def _storage(table: Table[Any]) -> Reparameterization:
    """The last link of every chain: constant multipliers are divided out, and what is tied is stored once."""
    flat = rows_of(table)
    place = {row.path: index for index, row in enumerate(flat)}
    sources = [_source(row, place, flat) if row.tied else None for row in flat]

    def init(weights: Weights, key: jax.Array) -> tuple[Raw, State]:
        leaves = [
            None if source is not None else _times(1 / row.multiplier, weight)
            for row, weight, source in zip(flat, leaves_of(table, weights), sources, strict=True)
        ]
        return like(table, leaves), ()

    def effective(raw: Raw, state: State) -> tuple[Weights, State]:
        leaves = leaves_of(table, raw)
        weights = []
        for row, stored, source in zip(flat, leaves, sources, strict=True):
            shared = stored if source is None else leaves[source].T if row.is_matrix else leaves[source]
            weights.append(_times(row.multiplier, shared))
        return like(table, weights), state

    stored = [
        None if source is not None else row.replace(std=divided(row.std, row.multiplier))
        for row, source in zip(flat, sources, strict=True)
    ]
    return Reparameterization(like(table, stored), init, effective, constant=True)


def _source(row: Row, place: dict[str, int], flat: list[Row]) -> int:
    """The index of the row that `row` is tied to; its path ends as that of `row` does (".../weight") where methods
    apply to both.

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
