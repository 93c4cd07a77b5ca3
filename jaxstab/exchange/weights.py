"""Tensors of a family's files into our weights and back, one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxstab.config import UserError
from jaxstab.exchange.family import Family
from jaxstab.exchange.tensors import Tensor
from jaxstab.table import Effective, Row, Table, rows

PARAMETERS = {"weight": ("kernel", "embedding", "scale"), "bias": ("bias",)}
HEAD, EMBEDDING = "lm_head/kernel", "embed_tokens/embedding"
ENDS = ("embed_tokens", "lm_head")
SHARING = (ENDS, ("layers/mlp/gate_proj", "layers/mlp/up_proj"))  # modules that may share a matrix, or a gate


class Piece(NamedTuple):
    """A tensor of a family, and the parameters of ours that it holds.

    Attributes:
      name: its name in their files.
      rows: of the parameters; several where it holds them fused.
      layer: the block's number from 0, None outside the blocks.
    """

    name: str
    rows: tuple[Row, ...]
    layer: int | None


def pieces(family: Family, table: Table[Effective]) -> Iterator[Piece]:
    """All tensors of a model, in the order of the family's modules; a tied head is none."""
    of = {row.path: row for row in rows(table)}
    for module, ours in family.modules.items():
        paths = (ours,) if isinstance(ours, str) else ours
        for theirs, names in PARAMETERS.items():
            for name in names:
                members = tuple(of[f"{path}/{name}"] for path in paths if f"{path}/{name}" in of)
                if members and not members[0].tied:
                    layers: Iterable[int | None] = range(members[0].layers) if members[0].stacked else (None,)
                    prefix = "" if f"{module}.{theirs}" == family.head else family.prefix
                    yield from (Piece(f"{prefix}{module.format(n)}.{theirs}", members, n) for n in layers)


def shape(family: Family, piece: Piece) -> tuple[int, ...]:
    """The shape of a piece in their files."""
    first = piece.rows[0].shape[int(piece.rows[0].stacked) :]
    fused = (*first[:-1], sum(row.shape[-1] for row in piece.rows))
    return fused[::-1] if _is_transposed(family, piece) else fused


def _is_transposed(family: Family, piece: Piece) -> bool:
    row = piece.rows[0]
    return row.path.endswith("/kernel") and (family.layout.transposed or row.path == HEAD)


def located(family: Family, table: Table[Effective], tensors: Mapping[str, Tensor]) -> dict[Piece, Tensor]:
    """Where every parameter is; nothing is read yet.

    Raises:
      UserError: a tensor is missing, has another shape, or is there beyond those of the model.
    """
    places, named = {}, set()
    for piece in pieces(family, table):
        name = next((n for n in (piece.name, piece.name.removeprefix(family.prefix)) if n in tensors), None)
        if name is None:
            raise UserError(
                f"the tensor {piece.name} is missing, which a {family.architecture} of this config.json has"
            )
        tensor, wanted = tensors[name], shape(family, piece)
        if tensor.shape != wanted:
            raise UserError(f"{name} of {tensor.path} is of shape {list(tensor.shape)}, not {list(wanted)}")
        places[piece] = tensor
        named.add(name)
    tied = {family.head} if table["lm_head"]["kernel"].tied else set()
    for name in tensors.keys() - named - tied:
        if not name.endswith(family.ignored):
            raise UserError(f"{name} of {tensors[name].path} is no parameter of a {family.architecture}")
    if tied & tensors.keys():
        _check_tied(tensors[family.head], next(t for p, t in places.items() if p.rows[0].path == EMBEDDING))
    return places


def _check_tied(head: Tensor, embedding: Tensor) -> None:
    if head.shape != embedding.shape or not np.array_equal(head.array(), embedding.array()):
        raise UserError(
            f"{head.name} of {head.path} differs from {embedding.name}, but config.json has tie_word_embeddings=true"
        )


def read(
    family: Family,
    heads: int,
    table: Table[Effective],
    places: Mapping[Piece, Tensor],
    factors: Mapping[str, np.ndarray],
) -> Any:
    """The weights, in float32 and in the structure of the table, as NumPy arrays; tensor by tensor.

    Args:
      family: of the files.
      heads: query heads.
      table: of the effective weights.
      places: where every parameter is.
      factors: numbers that parameters are multiplied by, by path; [L] in the blocks.

    Raises:
      UserError: a tensor has no known float dtype, or entries that are not finite.
    """
    arrays: dict[str, np.ndarray] = {}
    for piece, tensor in places.items():
        for row, part in zip(piece.rows, ours(family, heads, piece, _finite(tensor)), strict=True):
            if piece.layer is None:
                arrays[row.path] = part
            else:
                arrays.setdefault(row.path, np.empty(row.shape, np.float32))[piece.layer] = part
    if table["lm_head"]["kernel"].tied:
        arrays[HEAD] = arrays[EMBEDDING].T
    for path, factor in factors.items():
        arrays[path] = arrays[path] * factor.reshape(factor.shape + (1,) * (arrays[path].ndim - factor.ndim))
    return tree(arrays)


def _finite(tensor: Tensor) -> np.ndarray:
    array = np.asarray(tensor.array(), np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{tensor.name} of {tensor.path} has entries that are not finite")
    return array


def ours(family: Family, heads: int, piece: Piece, array: np.ndarray) -> list[np.ndarray]:
    """Our parameters of one block in a tensor of theirs."""
    array = array.T if _is_transposed(family, piece) else array
    array = array + np.float32(family.norm_offset) if piece.rows[0].role == "norm" and family.norm_offset else array
    return family.layout.split(array, len(piece.rows), heads) if len(piece.rows) > 1 else [array]


def theirs(family: Family, heads: int, piece: Piece, arrays: list[np.ndarray]) -> np.ndarray:
    """The tensor of theirs that holds our parameters: the inverse of `ours`."""
    array = family.layout.join(arrays, heads) if len(arrays) > 1 else arrays[0]
    array = array - np.float32(family.norm_offset) if piece.rows[0].role == "norm" and family.norm_offset else array
    return np.ascontiguousarray(array.T if _is_transposed(family, piece) else array)


def tree(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays by path as a tree of dicts."""
    nested: dict[str, Any] = {}
    for path, array in arrays.items():
        *modules, name = path.split("/")
        inner = nested
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[name] = array
    return nested


def groups(listed: Iterable[Piece]) -> Iterator[tuple[tuple[str, ...], list[Piece]]]:
    """Pieces with the modules that they hold, whose parameters are read together: (modules, pieces)."""
    together: dict[tuple[str, ...], list[Piece]] = {}
    for piece in listed:
        modules = tuple(row.path.rpartition("/")[0] for row in piece.rows)
        group = next((several for several in SHARING if modules[0] in several), modules)
        together.setdefault(group, []).append(piece)
    yield from together.items()


def size(listed: Iterable[Piece]) -> int:
    """The number of entries of several pieces, one block each."""
    return sum(math.prod(row.shape[int(row.stacked) :]) for piece in listed for row in piece.rows)
