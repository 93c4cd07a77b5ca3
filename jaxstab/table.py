"""The table: one row per parameter, read off the model, from which everything else follows.

A table is a pytree of the same structure as the parameters, with a `Row` where they have an array, so that
`jax.tree.map(function, table, parameters)` gives every array its row. Initial scales, reparameterization, weight decay,
shardings, measurements and `describe` are all functions of it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import jax

from jaxstab.config import UserError

# Matrices by the side of the residual stream they stand on. The names are Hugging Face's.
READERS = ("q_proj", "k_proj", "v_proj", "g_proj", "gate_proj", "up_proj", "lm_head")
BRANCH_OUTPUTS = ("o_proj", "down_proj")
EMBEDDINGS = ("embed_tokens", "embed_positions")
MATRICES = (*READERS, *BRANCH_OUTPUTS, *EMBEDDINGS)
VECTORS = ("norm", "bias", "gate")

Std = float | tuple[float, ...]


class Effective:
    """Marks what belongs to the weights that the model uses."""


class Stored:
    """Marks what belongs to the parameters that are stored and trained."""


Side = TypeVar("Side")  # Effective or Stored


class Table(dict[str, Any], Generic[Side]):
    """A tree of rows, `Table[Effective]` or `Table[Stored]`, for type checkers alone: any pytree will do at run time.

    A function of a `Table[Side]` and a `Tree[Side]` takes two of one side: the table of the effective weights with
    their gradients, say, but not with those of the stored parameters.
    """


class Tree(dict[str, Any], Generic[Side]):
    """A tree of arrays in the structure of a `Table` of its side; for type checkers alone, too."""


Weights = Tree[Effective]
Gradients = Tree[Effective]
Raw = Tree[Stored]
RawGradients = Tree[Stored]


def divided(std: Std | None, by: float) -> Std | None:
    """A standard deviation, or one per layer, over a constant; None stays None."""
    return None if std is None else jax.tree.map(lambda each: each / by, std)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of one parameter, without its values.

    Attributes:
      path: its place in the tree, as "layers/self_attn/q_proj/kernel".
      role: what it is for, one of MATRICES or VECTORS.
      shape: its shape, with the layer axis where it is stacked.
      axes: a logical axis name (or None) for every axis of `shape`.
      stacked: whether the first axis counts layers.
      depth: the number N of blocks in the model.
      std: standard deviation at initialization, a scalar or one per layer; None where it is not drawn.
      value: initial value of what is constant at initialization (gates, norms, biases); None where it is drawn.
      multiplier: a constant factor between the stored and the effective weight.
      learning_rate, decay, eps: multipliers of the optimizer's settings.
      tied: path of the stored parameter that this one is too, as its transpose where it is a matrix, or "".
      reads: tells the mean square of what it reads, or one per layer, where all before it put out unit variance, when
        asked; 1 where the model doesn't say.
      branch: path of the matrix that ends the residual branch whose output this one scales with: o_proj's and
        down_proj's own, or that of the matrix beside a bias; "" elsewhere.
      head_dim: size K of a head, of a matrix one axis of which ("heads" or "kv_heads") is all heads'; 0 elsewhere.
    """

    path: str
    role: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stacked: bool
    depth: int = 1
    std: Std | None = None
    value: Std | None = None
    multiplier: float = 1.0
    learning_rate: float = 1.0
    decay: float = 0.0
    eps: float = 1.0
    tied: str = ""
    branch: str = ""
    head_dim: int = 0
    reads: Callable[[], Std] = dataclasses.field(default=lambda: 1.0, compare=False, repr=False)

    @property
    def layers(self) -> int:
        """Number of layers in the stack; 0 for a parameter outside it."""
        return self.shape[0] if self.stacked else 0

    @property
    def is_matrix(self) -> bool:
        return self.role in MATRICES

    @property
    def fan_in(self) -> int:
        return self.shape[-2]

    @property
    def fan_out(self) -> int:
        return self.shape[-1]

    @property
    def width(self) -> int:
        """The model width d: the side of a matrix that faces the residual stream."""
        return self.fan_in if self.role in READERS else self.fan_out

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def gate(self, value: Std | None, axis: int | None = None) -> Row:
        """The row of a gate: a scalar per matrix, or a vector along the last (-1) or the last but one (-2) `axis`."""
        indices = list(range(int(self.stacked))) + ([] if axis is None else [axis])
        shape, axes = tuple(self.shape[i] for i in indices), tuple(self.axes[i] for i in indices)
        return Row("gate", "gate", shape, axes, self.stacked, self.depth, value=value)

    def replace(self, **changes: Any) -> Row:
        return dataclasses.replace(self, **changes)


def read(parameters: Any, roles: Mapping[str, str], *, stacked: str = r"^layers/", depth: int = 0) -> Table:
    """Reads the table off a tree of (abstract) parameters.

    Args:
      parameters: arrays, `jax.ShapeDtypeStruct`s or Flax boxes of these (`nn.with_logical_partitioning`), whose names
        become the logical axes.
      roles: regular expressions, searched in a parameter's path in order, to roles.
      stacked: a regular expression for the paths whose first axis counts layers.
      depth: the number of blocks; 0 takes the longest stack's.

    Raises:
      UserError: a parameter that no pattern covers.
    """

    def row(key_path: Any, leaf: Any) -> Row:
        path = path_of(key_path)
        value = leaf.value if hasattr(leaf, "names") else leaf
        role = next((role for pattern, role in roles.items() if re.search(pattern, path)), None)
        if role is None:
            raise UserError(f"no role covers the parameter {path} {tuple(value.shape)}; add a pattern for it")
        if role not in MATRICES + VECTORS:
            raise UserError(
                f"the parameter {path} has the unknown role {role!r}; roles: {', '.join(MATRICES + VECTORS)}"
            )
        axes = tuple(getattr(leaf, "names", (None,) * len(value.shape)))
        is_matrix = role in MATRICES
        initial = None if is_matrix else float(role == "norm")
        is_stacked = bool(re.search(stacked, path))
        return Row(path, role, value.shape, axes, is_stacked, value=initial, decay=float(is_matrix))

    table = jax.tree_util.tree_map_with_path(row, parameters, is_leaf=lambda leaf: hasattr(leaf, "names"))
    depth = depth or max(1, *(row.layers for row in rows(table)))
    branches = _branches(rows(table))
    return jax.tree.map(lambda row: row.replace(depth=depth, branch=branches.get(row.path, "")), table)


def _branches(flat: list[Row]) -> dict[str, str]:
    """The column `branch`: a bias belongs to the one matrix of its module."""
    modules: dict[str, list[Row]] = {}
    for row in flat:
        modules.setdefault(row.path.rpartition("/")[0], []).append(row)
    branches: dict[str, str] = {}
    for members in modules.values():
        matrices = [row for row in members if row.is_matrix]
        branches |= {row.path: row.path for row in matrices if row.role in BRANCH_OUTPUTS}
        if len(matrices) == 1 and matrices[0].role in BRANCH_OUTPUTS:
            branches |= {row.path: matrices[0].path for row in members if row.role == "bias"}
    return branches


def path_of(key_path: Any) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def rows(table: Table) -> list[Row]:
    """The rows of a table, in the order of its leaves."""
    return jax.tree.leaves(table)


def leaves_of(table: Table, tree: Any) -> list[Any]:
    """What `tree` has where `table` has rows: arrays, or the sub-trees that stand for them."""
    structure: Any = jax.tree.structure(table)
    return structure.flatten_up_to(tree)


def like(table: Table, leaves: Iterable[Any]) -> Any:
    """A tree in the structure of `table`: the inverse of `leaves_of`."""
    structure: Any = jax.tree.structure(table)
    return structure.unflatten(leaves)


def count(table: Table) -> int:
    """The exact number of parameters."""
    return sum(row.size for row in rows(table))


def by_role(function: Callable[..., Any], table: Table[Side], *trees: Tree[Side]) -> dict[str, Any]:
    """Applies `function(row, *leaves)` to every matrix and returns {role: result}.

    Matrices of one role are expected to be stacked; a second one of the same role gets its path as its name.
    """
    results: dict[str, Any] = {}
    flat = [leaves_of(table, tree) for tree in trees]
    for row, *leaves in zip(rows(table), *flat, strict=True):
        if row.is_matrix:
            results[row.role if row.role not in results else row.path] = function(row, *leaves)
    return results


def named_rows(table: Table[Side]) -> dict[str, Row]:
    """Every row by its name: a matrix's is its role, as in `by_role`, that of any other parameter its path."""
    by: dict[str, Row] = {}
    for row in rows(table):
        by[row.role if row.is_matrix and row.role not in by else row.path] = row
    return by


def by_name(function: Callable[..., Any], table: Table[Side], *trees: Tree[Side]) -> dict[str, Any]:
    """Applies `function(row, *leaves)` to every parameter and returns {name: result}."""
    flat = [leaves_of(table, tree) for tree in trees]
    return {name: function(row, *leaves) for (name, row), *leaves in zip(named_rows(table).items(), *flat, strict=True)}
