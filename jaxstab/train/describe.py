"""`main.py describe`: what a config trains, row by row, without allocating a weight."""

from __future__ import annotations

from jax.sharding import AbstractMesh
from rich.console import Console
from rich.table import Table as RichTable

from jaxstab import scale
from jaxstab.config import build_method
from jaxstab.reparam import METHODS, reparameterize
from jaxstab.table import Row, Std, Table, count, rows
from jaxstab.train.config import Config
from jaxstab.train.step import effective_table

COLUMNS = ("path", "role", "shape", "stored std", "gate", "effective std", "decay", "sharding")


def describe(config: Config) -> list[tuple[str, ...]]:
    """One row of text for every stored leaf, under COLUMNS. The vocabulary must be resolved."""
    effective = effective_table(config)
    stored = reparameterize(effective, build_method(config.reparam, METHODS)).table
    return [_cells(row, effective, stored, config) for row in rows(stored)]


def total(config: Config) -> int:
    """The exact number of stored parameters."""
    return count(reparameterize(effective_table(config), build_method(config.reparam, METHODS)).table)


def show(config: Config, console: Console | None = None) -> None:
    """Prints the rows and the total."""
    console = console or Console()
    table = RichTable(*COLUMNS, box=None, pad_edge=False)
    for cells in describe(config):
        table.add_row(*cells)
    console.print(table)
    parameters = total(config)
    console.print(f"\n{parameters:,} parameters ({parameters / 1e6:,.1f}M)", highlight=False)


def _cells(row: Row, effective: Table, stored: Table, config: Config) -> tuple[str, ...]:
    used = next(e for e in rows(effective) if row.path == e.path or row.path.startswith(e.path + "/"))
    gate = row.value if row.role == "gate" else None
    if row.is_matrix:
        gate = next((s.value for s in rows(stored) if s.path == f"{used.path}/gate"), row.multiplier)
    decays = row.decay or (row.role == "gate" and config.optimizer.decay_gates)
    return (
        row.path,
        row.role,
        "x".join(map(str, row.shape)) or "scalar",
        _number(row.std),
        _number(gate),
        _number(used.std if row.is_matrix else None),
        f"{config.optimizer.weight_decay * (row.decay or 1.0):g}" if decays else "-",
        _sharding(row, config),
    )


def _number(value: Std | None) -> str:
    if isinstance(value, tuple):
        return f"{min(value):.4g}..{max(value):.4g}"
    return "-" if value is None else f"{value:.4g}"


def _sharding(row: Row, config: Config) -> str:
    """Mesh axes along each axis of the array, as the mesh of the config would split it on any number of devices."""
    sizes = tuple(max(1, getattr(config.mesh, axis)) for axis in scale.AXES)
    spec = scale.spec(row, AbstractMesh(sizes, scale.AXES))
    split = [name if name and config_splits(name, config) else "." for name in spec]
    return " ".join(map(str, split)) or "."


def config_splits(name: object, config: Config) -> bool:
    """Whether the mesh axis has, or may take, more than one device."""
    return getattr(config.mesh, str(name)) != 1
