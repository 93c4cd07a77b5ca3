"""`measurements/<first step>-<last step>.parquet`: vectors over layers, one row a (step, measurement).

Rows have `step` (int64), `name` (`stability/update_ratio/down_proj`) and `values` (a list of float32, one a layer).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SCHEMA = pa.schema([("step", pa.int64()), ("name", pa.string()), ("values", pa.list_(pa.float32()))])
DIRECTORY = "measurements"
ROWS_A_PART = 50_000
PENDING_ROWS = 8 * ROWS_A_PART


class MeasurementFiles:
    """Collects rows and writes them as one more file at each flush."""

    def __init__(self, workdir: Path, last_step: int):
        """Continues the files of `workdir` after `last_step`; later rows go with the first flush."""
        self._directory = workdir / DIRECTORY
        self._last_step = last_step
        self._purged = False
        self._rows: list[tuple[int, str, np.ndarray]] = []

    @property
    def pending(self) -> int:
        """Rows that have not reached a file."""
        return len(self._rows)

    def add(self, step: int, name: str, values: Any) -> None:
        """Takes a vector `[layers]`; raises OSError where a file was due and could not be written."""
        vector = np.array(values, np.float32)
        if vector.ndim != 1:
            raise ValueError(f"measurement {name} is a vector over layers, not of shape {vector.shape}")
        self._rows.append((step, name, vector))
        if len(self._rows) % ROWS_A_PART == 0:
            self.flush()

    def flush(self) -> None:
        """Writes the rows collected; raises OSError where that fails, and keeps the newest for the next attempt."""
        del self._rows[:-PENDING_ROWS]
        if not self._purged:
            purge(self._directory, self._last_step)
            self._purged = True
        if self._rows:
            steps, names, values = zip(*self._rows, strict=True)
            table = pa.table([steps, names, list(values)], schema=SCHEMA)
            self._directory.mkdir(exist_ok=True)
            path = _path(self._directory, table)
            _write(path, pa.concat_tables([_read(path), table]) if path.exists() else table)
            self._rows.clear()


def _path(directory: Path, table: pa.Table) -> Path:
    first, last = pc.min_max(table["step"]).as_py().values()
    return directory / f"{first:09d}-{last:09d}.parquet"


def _write(path: Path, table: pa.Table) -> None:
    """Writes one part, whole or not at all."""
    temporary = path.with_name("part.tmp")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def purge(directory: Path, last_step: int) -> None:
    """Removes the rows after `last_step`; killed at any moment, it can be done again."""
    for path in _parts(directory):
        first, last = map(int, path.stem.split("-"))
        if last <= last_step:
            continue
        if first <= last_step:
            table = _read(path)
            kept = table.filter(pc.less_equal(table["step"], last_step))
            _write(_path(directory, kept), kept)
        path.unlink()


def _parts(directory: Path) -> list[Path]:
    return sorted(directory.glob("*-*.parquet"))


def _read(path: Path) -> pa.Table:
    return pq.ParquetFile(path).read()


def read_measurements(workdir: str | Path, after: int = -1) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The measurements of a run after a step, also of one that is still going (up to its last flush).

    Returns:
      For each name: steps, int64[n], ascending, and values, float32[n, layers]. Empty where there are none.
    """
    rows: dict[str, list[tuple[int, list[float]]]] = defaultdict(list)
    for path in _parts(Path(workdir) / DIRECTORY):
        if int(path.stem.split("-")[1]) <= after:
            continue
        columns = _read(path).filter(pc.field("step") > after).to_pydict()
        for step, name, values in zip(columns["step"], columns["name"], columns["values"], strict=True):
            rows[name].append((step, values))
    return {name: _stacked(sorted(pairs, key=lambda pair: pair[0])) for name, pairs in rows.items()}


def _stacked(pairs: list[tuple[int, list[float]]]) -> tuple[np.ndarray, np.ndarray]:
    steps, values = zip(*pairs, strict=True)
    return np.array(steps, np.int64), np.array(values, np.float32)
