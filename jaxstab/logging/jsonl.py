"""`metrics.jsonl`: one JSON object per line, `{"step": 12, "attempt": 0, "train/loss": 5.1}`.

JSON has no numbers that aren't finite: such values are written as the strings "nan", "inf" and "-inf", which
`read_metrics` turns back into numbers. A line of a training step and one of an evaluation may have the same step.
"""

from __future__ import annotations

import collections
import errno
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jaxstab import durable, safe_json
from jaxstab.config import UserError

PENDING_LINES = 100_000
SPIKE = b'"train/spike": 1'
DAMAGED = (math.inf, math.inf)
BEGUN = re.compile(rb'\{"step": (\d{1,18}),')  # a line that a kill has torn


class MetricsFile:
    """Appends lines, each whole or not at all; lines that could not be written are tried again with the next one."""

    def __init__(self, path: Path, last_step: int, attempt: int = 0, warn: Callable[[str], None] = logging.warning):
        """Continues the file at `path` after `last_step` of `attempt`; the first write removes its later lines, and
        sets damaged ones aside, of which `warn` hears."""
        self._path = path
        self._warn = warn
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
            purge(self._path, self._last_step, self._attempt, self._warn)
            self._purged = True
        if self._pending:
            _append(self._path, b"".join(self._pending))
            self._pending.clear()

    def sync(self) -> None:
        """Brings all lines to the disk, where they outlast a power loss; raises OSError where that fails."""
        self.flush()
        if self._path.exists():
            durable.sync(self._path)


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


def purge(path: Path, last_step: int, attempt: int, warn: Callable[[str], None] = logging.warning) -> None:
    """Removes the lines of `attempt` after `last_step`, and sets aside in `<name>.damaged` what is no line; atomic.

    All lines of earlier attempts stay, so that a spike can still be looked at after the roll-back.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        if all(_place_of(line) <= (attempt, last_step) for line in lines):
            return
    aside, damaged = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".damaged")
    with path.open("rb") as lines, aside.open("wb") as earlier:
        bad = [line for line in lines if not _passed_on(line, earlier, (attempt, last_step))]
    if bad:
        with damaged.open("ab") as file:
            file.writelines(bad)
        warn(f"{path} had {len(bad)} damaged lines, which are set aside in {damaged.name}")
    durable.replace(aside, path)


def _passed_on(line: bytes, earlier: IO[bytes], last: tuple[int, int]) -> bool:
    """Writes a line that isn't later than `last`; returns whether it is a line of metrics, or will be written again."""
    place = _place_of(line)
    if place <= last:
        earlier.write(line)
    begun = BEGUN.match(line)
    return place != DAMAGED or (not line.endswith(b"\n") and begun is not None and int(begun[1]) > last[1])


def count_spikes(path: Path, last_step: int, attempt: int) -> int:
    """The steps up to `last_step` of `attempt` that were spikes, those of earlier attempts included."""
    if not path.exists():
        return 0
    with path.open("rb") as lines:  # a search of bytes first, since parsing every line takes as long as reading a run
        return sum(SPIKE in line and _place_of(line) <= (attempt, last_step) for line in lines)


def _place_of(line: bytes) -> tuple[float, float]:
    """The attempt and step of a line; DAMAGED where it is none, or torn."""
    try:
        values = safe_json.loads(line) if line.endswith(b"\n") else {}
        attempt, step = values["attempt"], values["step"]
    except (ValueError, KeyError, TypeError):
        return DAMAGED
    return (attempt, step) if type(attempt) is int and type(step) is int else DAMAGED


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, oldest first; see `each_line`."""
    return list(each_line(path))


def each_line(path: str | Path, after: int = -1) -> Iterator[dict[str, Any]]:
    """Yields the lines of `metrics.jsonl`, oldest first, one at a time; a last one that is being written is left out.

    Args:
      path: of the file.
      after: lines of steps up to this one are left out.

    Yields:
      One dict per line: `step` and `attempt` as ints, all else as floats.

    Raises:
      UserError: there is no such file, or one of its lines is not a metrics line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no metrics file {path}")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n") and (parsed := _parsed(path, number, line))["step"] > after:
                yield parsed


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
        if _place_of(line) == DAMAGED:
            raise ValueError
        values = safe_json.loads(line).items()
        return {key: value if key in ("step", "attempt") else float(value) for key, value in values}
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}, line {number} is not a line of metrics: {line[:60]!r}") from error
