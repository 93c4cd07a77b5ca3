"""`main.py describe`: what a config trains, a row per stored parameter, without allocating a weight."""

from __future__ import annotations

import jax
from jax.sharding import AbstractMesh

from jaxstab import scale
from jaxstab.model.flops import flops_per_token
from jaxstab.reparam import Method
from jaxstab.table import Effective, Row, Std, Stored, Table, count, rows
from jaxstab.train.config import Config
from jaxstab.train.setup import effective_table, reparameterized

COLUMNS = ("path", "role", "shape", "stored std", "gate", "effective std", "decay", "sharding")


def describe(config: Config) -> list[tuple[str, ...]]:
    """One row of text for every stored leaf, under COLUMNS. The vocabulary must be resolved."""
    effective, methods, reparam = reparameterized(config)
    return [_cells(row, _source(row, effective), reparam.table, methods, config) for row in rows(reparam.table)]


def total(config: Config) -> int:
    """The exact number of stored parameters."""
    return count(reparameterized(config)[2].table)


def show(config: Config) -> None:
    """Prints the rows, the mesh, the FLOPs of a token and the total."""
    lines = [COLUMNS, *describe(config)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    parameters, length = total(config), config.data.length
    flops = flops_per_token(effective_table(config), length)
    print(f"\nmesh: {', '.join(f'{axis} {size}' for axis, size in _mesh(config).shape.items())}")
    print(f"FLOPs per token at length {length}: {', '.join(f'{name} {value:.4g}' for name, value in flops.items())}")
    print(f"{parameters:,} parameters ({parameters / 1e6:,.1f}M)")


def _source(row: Row, effective: Table[Effective]) -> Row:
    """The effective parameter that a stored one is part of."""
    return next(e for e in rows(effective) if row.path == e.path or row.path.startswith(e.path + "/"))


def _cells(row: Row, used: Row, stored: Table[Stored], methods: tuple[Method, ...], config: Config) -> tuple[str, ...]:
    applied = [method for method in methods if method.applies(used)]
    gate = row.value if row.role == "gate" else None
    if row.is_matrix:
        constant = 1.0 if any(method.absorbs for method in applied) else used.multiplier
        constant = row.multiplier if constant == 1 else constant
        beside = f"{row.path.rpartition('/')[0]}/gate"
        gate = next((s.value for s in rows(stored) if s.path == beside), None if constant == 1 else constant)
    is_preserved = row.is_matrix and all(method.preserves for method in applied)
    decays = config.optimizer.decay_of(row)
    return (
        row.path,
        row.role,
        "x".join(map(str, row.shape)) or "scalar",
        _number(row.std),
        _number(gate),
        _number(used.std if is_preserved else None),
        f"{config.optimizer.weight_decay * (row.decay or 1.0):g}" if decays else "-",
        _sharding(row, config),
    )


def _number(value: Std | None) -> str:
    if isinstance(value, tuple):
        return f"{min(value):.4g}..{max(value):.4g}"
    return "-" if value is None else f"{value:.4g}"


def _mesh(config: Config) -> AbstractMesh:
    """The run's mesh, of which an axis of -1 takes what is left of the devices here."""
    return AbstractMesh(scale.mesh_sizes(config.mesh, jax.device_count()), scale.AXES)


def _sharding(row: Row, config: Config) -> str:
    """Mesh axes along each axis of the array."""
    mesh = _mesh(config)
    spec = scale.spec(row, mesh)
    return " ".join(str(name) if name and mesh.shape[name] > 1 else "." for name in spec) or "."
