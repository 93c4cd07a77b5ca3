"""`metrics.jsonl`: one JSON object per line, `{"step": 12, "attempt": 0, "train/loss": 5.1}`.

JSON has no numbers that aren't finite: such values are written as the strings "nan", "inf" and "-inf", which
`read_metrics` turns back into numbers. A line of a training step and one of an evaluation may have the same step.
"""

from __future__ import annotations

import collections
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxstab.config import UserError

PENDING_LINES = 100_000
SPIKE = b'"train/spike": 1'


class MetricsFile:
    """Appends lines, each whole or not at all; lines that could not be written are tried again with the next one."""

    def __init__(self, path: Path, last_step: int, attempt: int = 0):
        """Continues the file at `path` after `last_step` of `attempt`; the first write removes its later lines."""
        self._path = path
        self._last_step = last_step
        self._attempt = attempt
        self._purged = False
        self._pending: collections.deque[bytes] = collections.deque(maxlen=PENDING_LINES)

    @property
    def pending(self) -> int:
        """Lines that have not reached the file."""
        return len(self._pending)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line; raises OSError where that fails, and keeps the line for the next attempt."""
        values = {name: _json_number(float(value)) for name, value in scalars.items()}
        line = json.dumps({"step": step, "attempt": self._attempt, **values}, allow_nan=False)
        self._pending.append(line.encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Writes what is pending; raises OSError where that fails."""
        if not self._purged:
            purge(self._path, self._last_step, self._attempt)
            self._purged = True
        if self._pending:
            _append(self._path, b"".join(self._pending))
            self._pending.clear()


def _append(path: Path, data: bytes) -> None:
    """Opens the file anew each time, since one whose directory has been removed would take the lines and lose them."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(file).st_size
        if os.write(file, data) < len(data):
            os.ftruncate(file, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(file)


def purge(path: Path, last_step: int, attempt: int) -> None:
    """Removes the lines of `attempt` after `last_step`, and lines that a kill has torn; atomic.

    All lines of earlier attempts stay, so that a spike can still be looked at after the roll-back.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    earlier = [line for line in lines if _place_of(line) <= (attempt, last_step)]
    if len(earlier) < len(lines):
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(b"".join(earlier))
        temporary.replace(path)


def count_spikes(path: Path, last_step: int, attempt: int) -> int:
    """The steps up to `last_step` of `attempt` that were spikes, those of earlier attempts included."""
    if not path.exists():
        return 0
    with path.open("rb") as lines:  # a search of bytes first, since parsing every line takes as long as reading a run
        return sum(SPIKE in line and _place_of(line) <= (attempt, last_step) for line in lines)


def _place_of(line: bytes) -> tuple[float, float]:
    """The attempt and step of a line; infinity where the line is torn."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else {}
        return values["attempt"], values["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf, math.inf


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, oldest first; a last line that is still being written is left out.

    Returns:
      One dict per line: `step` and `attempt` as ints, all else as floats.

    Raises:
      UserError: there is no such file, or one of its lines is not a metrics line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no metrics file {path}")
    lines = path.read_bytes().splitlines(keepends=True)
    whole = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
    return [_parsed(path, number, line) for number, line in enumerate(whole, start=1)]


def in_force(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a run without those that a roll-back has abandoned: the steps of its present branch."""
    first_steps: dict[int, int] = {}
    for line in lines:
        first_steps[line["attempt"]] = min(line["step"], first_steps.get(line["attempt"], line["step"]))

    def is_in_force(line: dict[str, Any]) -> bool:
        later = (first for attempt, first in first_steps.items() if attempt > line["attempt"])
        return line["step"] < min(later, default=math.inf)

    return [line for line in lines if is_in_force(line)]


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return {key: value if key in ("step", "attempt") else float(value) for key, value in json.loads(line).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}, line {number} is not a line of metrics: {line[:60]!r}") from error
