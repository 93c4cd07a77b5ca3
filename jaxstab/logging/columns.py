"""`measurements/<first step>-<last step>.parquet`: vectors over layers, one row per step and measurement.

Rows have `step` (int64), `name` (`stability/update_ratio/down_proj`) and `values` (a list of float32, one per layer).
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxstab import durable
from jaxstab.config import UserError

SCHEMA = pa.schema([("step", pa.int64()), ("name", pa.string()), ("values", pa.list_(pa.float32()))])
DIRECTORY = "measurements"
ROWS_PER_PART = 50_000
PENDING_ROWS = 8 * ROWS_PER_PART
NAME = re.compile(r"\d+-\d+\.parquet")


class MeasurementFiles:
    """Collects rows and writes them as one more file at each flush."""

    def __init__(self, workdir: Path, last_step: int, warn: Callable[[str], None] = logging.warning):
        """Continues the files of `workdir` after `last_step`; the first flush removes later rows, and sets damaged
        files aside, of which `warn` hears."""
        self._directory = workdir / DIRECTORY
        self._warn = warn
        self._last_step = last_step
        self._purged = False
        self._rows: list[tuple[int, str, np.ndarray]] = []

    @property
    def pending(self) -> int:
        """Rows that have not reached a file."""
        return len(self._rows)

    def add(self, step: int, vectors: Mapping[str, Any]) -> None:
        """Takes vectors `[layers]` by name; raises OSError where a file is due and cannot be written."""
        before = len(self._rows)
        for name, values in vectors.items():
            vector = np.array(values, np.float32)
            if vector.ndim != 1:
                raise ValueError(f"measurement {name} is a vector over layers, not of shape {vector.shape}")
            self._rows.append((step, name, vector))
        if len(self._rows) // ROWS_PER_PART > before // ROWS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Writes the rows collected; raises OSError where that fails, and keeps the newest for the next attempt."""
        del self._rows[:-PENDING_ROWS]
        if not self._purged:
            purge(self._directory, self._last_step, self._warn)
            self._purged = True
        if self._rows:
            table = _table(self._rows)
            self._directory.mkdir(exist_ok=True)
            path = _path(self._directory, table)
            _write(path, pa.concat_tables([_read(path), table]) if path.exists() else table)
            self._rows.clear()


def _table(rows: list[tuple[int, str, np.ndarray]]) -> pa.Table:
    """Rows as a table; all values are one array, since Arrow takes many small ones apart number by number."""
    steps, names, vectors = zip(*rows, strict=True)
    ends = np.cumsum([0, *map(len, vectors)], dtype=np.int32)
    return pa.table([steps, names, pa.ListArray.from_arrays(ends, np.concatenate(vectors))], schema=SCHEMA)


def _path(directory: Path, table: pa.Table) -> Path:
    first, last = pc.min_max(table["step"]).as_py().values()
    return directory / f"{first:09d}-{last:09d}.parquet"


def _write(path: Path, table: pa.Table) -> None:
    """Writes one part, whole or not at all."""
    temporary = path.with_name("part.tmp")
    pq.write_table(table, temporary, compression="zstd")
    durable.replace(temporary, path)


def purge(directory: Path, last_step: int, warn: Callable[[str], None] = logging.warning) -> None:
    """Removes the rows after `last_step`; where that was cut off by a kill, it can be done again.

    A file that can't be read, or doesn't hold the steps that its name says, is set aside as `<name>.damaged`.
    """
    for path in _parts(directory):
        first, last = _steps_of(path)
        if first > last_step:
            path.unlink()
            continue
        try:
            _check(path)
            table = _read(path) if last > last_step else None
        except UserError as error:
            path.replace(path.with_name(path.name + ".damaged"))
            warn(f"{error}: it is set aside as {path.name}.damaged")
            continue
        if table is not None:
            earlier = table.filter(pc.less_equal(table["step"], last_step))
            _write(_path(directory, earlier), earlier)
            path.unlink()


def _steps_of(path: Path) -> tuple[int, int]:
    first, last = path.stem.split("-")
    return int(first), int(last)


def _parts(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*-*.parquet") if NAME.fullmatch(path.name))


def _read(path: Path) -> pa.Table:
    with _readable(path):
        table = pq.ParquetFile(path).read().cast(SCHEMA)
        table.validate(full=True)  # whether names are UTF-8, which nothing before asks
        return table


def _check(path: Path) -> None:
    """Raises UserError where the file's own account of its steps isn't that of its name."""
    with _readable(path), pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i).column(0).statistics for i in range(file.num_row_groups)]
        steps = min(group.min for group in groups), max(group.max for group in groups)
    if steps != _steps_of(path):
        raise UserError(f"{path} holds steps {steps[0]} to {steps[1]}")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what a damaged or foreign file raises into one line."""
    try:
        yield
    except (PermissionError, FileNotFoundError):
        raise
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} can't be read: {reason}") from error


def read_measurements(workdir: str | Path, after: int = -1) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The measurements of a run after a step, also of a run that is still going (up to its last flush).

    Returns:
      For each name: steps, int64[n], ascending, and values, float32[n, layers]. Empty where there are none.

    Raises:
      UserError: a file is damaged, or none of measurements.
      ValueError: the vectors of one name differ in length.
    """
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for path in _parts(Path(workdir) / DIRECTORY):
        if int(path.stem.split("-")[1]) > after:
            for name, steps, values in _by_name(_read(path), after):
                parts[name].append((steps, values))
    return {name: _joined(name, parts.pop(name)) for name in list(parts)}


def _by_name(table: pa.Table, after: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Each name of a part with its steps `[n]` and values `[n, layers]`, in the order of the rows.

    No value becomes a Python object: Arrow holds all vectors of a part one after another in one buffer of floats, and
    the vectors of a name are gathered from there.
    """
    steps = table["step"].to_numpy()
    names = table["name"].combine_chunks().dictionary_encode()
    lists = table["values"].combine_chunks()
    floats = lists.flatten().to_numpy()
    lengths = lists.value_lengths().to_numpy()
    starts = np.cumsum(lengths) - lengths
    codes = np.where(steps > after, names.indices.to_numpy(), len(names.dictionary))  # the last group is left out
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(names.dictionary)), side="right")
    for name, rows in zip(names.dictionary.to_pylist(), np.split(order, ends)[:-1], strict=True):
        if len(rows):
            layers = _only_length(name, lengths[rows])
            yield name, steps[rows], floats[starts[rows, None] + np.arange(layers)]


def _only_length(name: str, lengths: np.ndarray) -> int:
    if np.any(lengths != lengths[0]):
        raise ValueError(f"measurement {name} has vectors of different lengths: {np.unique(lengths).tolist()}")
    return int(lengths[0])


def _joined(name: str, parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The steps and values of a name from all parts, sorted by step."""
    _only_length(name, np.array([values.shape[1] for _, values in parts]))
    steps, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    if np.all(steps[1:] >= steps[:-1]):
        return steps, values
    order = np.argsort(steps, kind="stable")
    return steps[order], values[order]
