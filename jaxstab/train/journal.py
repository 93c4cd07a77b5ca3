"""`interventions.jsonl`: what was done to a run, appended before it takes effect; resuming replays it.

    {"kind": "rollback", "attempt": 1, "step": 240, "to": 100, "skip": [239, 439], "learning_rate": 0.5,
     "max_norm": 0.0, "until": 600, "reason": "..."}
    {"kind": "skip", "skip": [100, 140]}

`skip` is a half-open range of batches, counted from 0 as they come in the data, that the run steps over. A line of the
second kind may be written by hand before the run gets there.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxstab import durable, safe_json
from jaxstab.config import UserError

FILE = "interventions.jsonl"
LAST_BATCH = 2**53  # as far as any reader of JSON counts exactly
Range = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Rollback:
    """Going back to a checkpoint.

    Attributes:
      attempt: the number of roll-backs, this one included; metrics and checkpoints carry it from here on.
      step: of the spike.
      to: the step of the checkpoint; 0 is the initial state.
      skip: batches left out from now on.
      learning_rate, max_norm: a factor on the rate, and a limit on the gradient's norm (0 for none), up to step
        `until`.
      reason: what was measured.
    """

    attempt: int
    step: int
    to: int
    skip: Range
    learning_rate: float
    max_norm: float
    until: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Journal:
    """The interventions that the run keeps to from now on.

    Attributes:
      skipped: disjoint ranges of batches, ascending.
      rollbacks: in the order of attempts.
    """

    skipped: tuple[Range, ...] = ()
    rollbacks: tuple[Rollback, ...] = ()

    @classmethod
    def of(cls, values: dict[str, Any]) -> Journal:
        """The journal whose fields stand in `values`, as JSON has them."""
        skipped = tuple((first, end) for first, end in values["skipped"])
        return cls(skipped, tuple(Rollback(**rollback) for rollback in values["rollbacks"]))

    @property
    def attempt(self) -> int:
        """The number of roll-backs so far."""
        return len(self.rollbacks)

    def batch_of(self, step: int) -> int:
        """The batch that step `step` (from 1) trains on, from 0."""
        batch = step - 1
        for first, end in self.skipped:
            if batch >= first:
                batch += end - first
        return batch

    def abandons(self, step: int, attempt: int) -> bool:
        """Whether a later roll-back went back behind a checkpoint of that step and attempt."""
        return any(rollback.to < step and attempt < rollback.attempt for rollback in self.rollbacks)

    def rates_after_rollback(self, step: int) -> tuple[float, float]:
        """The factor on the learning rate, and the limit on the gradient's norm (0 for none), of a step."""
        if self.rollbacks and step <= self.rollbacks[-1].until:
            return self.rollbacks[-1].learning_rate, self.rollbacks[-1].max_norm
        return 1.0, 0.0


def read(workdir: Path, warn: Callable[[str], None] = logging.warning) -> Journal:
    """The journal of a workdir; empty where there is none.

    A last line that lacks its end counts where it is whole. Where a kill has torn it, it has not taken effect, doesn't
    count, and `warn` hears of it.

    Raises:
      UserError: the file can't be read, or a line is not one of a journal.
    """
    path = workdir / FILE
    skipped: list[Range] = []
    rollbacks: list[Rollback] = []
    for number, line in enumerate(_lines(path), 1):
        try:
            entry = safe_json.loads(line)
            kind, skip = entry.pop("kind"), _skip(entry.pop("skip"))
            if kind == "rollback":
                rollbacks.append(_rollback(entry, skip, len(rollbacks) + 1))
            elif kind != "skip" or entry:
                raise ValueError(kind)
            skipped.append(skip)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if not line.endswith(b"\n"):
                warn(f"{path}, line {number}, the last one, was torn while it was written, and doesn't count")
                break
            raise UserError(
                f'{path}, line {number} is no intervention: {line.strip()[:80]!r}; one is {{"kind": "skip", "skip": '
                "[first batch, end]}"
            ) from error
    return Journal(_merged(skipped), tuple(rollbacks))


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error


def _skip(value: Any) -> Range:
    """A range of batches; raises ValueError or TypeError where the value is none."""
    first, end = value
    if type(first) is not int or type(end) is not int or not 0 <= first < end <= LAST_BATCH:
        raise ValueError(value)
    return first, end


def _rollback(entry: dict[str, Any], skip: Range, attempt: int) -> Rollback:
    """The roll-back of a line; raises ValueError or TypeError where it is none, or not the one that is due."""
    rollback = Rollback(**entry, skip=skip)
    counts = rollback.attempt, rollback.step, rollback.to, rollback.until
    rates = rollback.learning_rate, rollback.max_norm
    if rollback.attempt != attempt or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError(entry)
    if not all(isinstance(rate, int | float) and 0 <= rate < math.inf for rate in rates):
        raise ValueError(entry)
    return rollback


def _merged(ranges: list[Range]) -> tuple[Range, ...]:
    merged: list[Range] = []
    for first, end in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((first, end))
    return tuple(merged)


def check(journal: Journal, meta: dict[str, Any], batch_size: int) -> None:
    """Raises UserError where the data of a checkpoint isn't what the journal says now."""
    position = journal.batch_of(meta["step"] + 1) * batch_size
    if meta["position"] != position and meta["attempt"] == journal.attempt:
        raise UserError(
            f"checkpoint {meta['step']} stands at record {meta['position']}, {FILE} at {position}: a range to skip was "
            "changed behind it; take it back, or write one that lies ahead"
        )


def append(workdir: Path, rollback: Rollback) -> None:
    """Writes a roll-back down; on return it is on the disk. A line that a kill has torn is left out.

    Raises:
      UserError: it can't be written; the journal is as it was.
    """
    path = workdir / FILE
    lines = _lines(path)
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1:] = [lines[-1] + b"\n"] if _is_whole(lines[-1]) else []
    line = json.dumps({"kind": "rollback", **dataclasses.asdict(rollback)}) + "\n"
    try:
        durable.write(path, b"".join(lines) + line.encode())
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from error


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(safe_json.loads(line), dict)
    except ValueError:
        return False
