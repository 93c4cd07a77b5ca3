"""`incidents/<step>/`: what is known of a spike when it occurs, for whoever asks later what it was.

incident.json          what was measured, what was done, the config, the batch's place, the checkpoint before it
batch.npy              its tokens, int32 [B, T+1]
batch.txt              its text, one paragraph per document
metrics.jsonl          the last HISTORY steps of every measurement, as in the workdir itself
measurements/
summary.md             a page to read first
"""

from __future__ import annotations

import collections
import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab import durable, safe_json
from jaxstab.config import UserError
from jaxstab.data import Tokenizer
from jaxstab.logging import each_line, in_force, read_measurements
from jaxstab.logging.columns import MeasurementFiles
from jaxstab.logging.jsonl import MetricsFile
from jaxstab.logging.run import METRICS
from jaxstab.numerics import robust_spread
from jaxstab.train.workdir import CONFIG

DIRECTORY = "incidents"
RECORD = "incident.json"
DAMAGED = ".damaged"
HISTORY = 200
MOVERS = 12

Remembered = tuple[int, dict[str, float], dict[str, Any]]  # step, scalars, vectors over layers


class Incidents:
    """The incidents of a run, and its last steps, which the next incident's record will hold."""

    def __init__(self, workdir: Path, limit: int, attempt: int, last_step: int, warn: Callable[[str], None] = print):
        """Goes on in `workdir` after `last_step`; at most `limit` incidents are kept. `warn` takes a line."""
        self._directory = workdir / DIRECTORY
        self._limit, self._attempt = limit, attempt
        self._steps: collections.deque[Remembered] = collections.deque(maxlen=HISTORY)
        _set_damaged_aside(self._directory, warn)
        if last_step and (workdir / METRICS).exists():
            try:
                self._steps.extend(read_steps(workdir, last_step - HISTORY, last_step))
            except Exception as error:  # no log keeps a run from going on, whatever is damaged in it
                warn(f"the logs up to step {last_step} can't be read ({error}): incidents begin with the next step")

    def remember(self, step: int, scalars: dict[str, float], arrays: dict[str, Any]) -> None:
        """Takes the measurements of a step."""
        self._steps.append((step, scalars, arrays))

    @property
    def goes_on(self) -> bool:
        """Whether the incident of the step remembered last began before it."""
        return len(self._steps) > 1 and is_incident(self._steps[-2][1])

    def write(self, record: dict[str, Any], batch: np.ndarray, tokenizer: Tokenizer) -> Path | None:
        """Writes the incident of the step remembered last; killed at any moment, it can be done again.

        Args:
          record: what is known, as JSON: a `reason` of one line, the `response`, the `checkpoint` to replay from, the
            `batch` and its `records`, the `journal`, the flat `config` and the data's `identity`.
          batch: the step's tokens `[B, T+1]`.
          tokenizer: to show them as text.

        Returns:
          Where it is; None where the limit of incidents has been reached.
        """
        step, scalars, _ = self._steps[-1]
        path = self._directory / (f"{step}-{self._attempt}" if self._attempt else str(step))
        others = _directories(self._directory)
        if len(others) >= self._limit and path not in others:
            return None
        record = {"step": step, "attempt": self._attempt, **record, "metrics": scalars}
        config = {key: record.pop(key) for key in ("config", "identity")}
        aside = path.with_name(path.name + ".tmp")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        np.save(aside / "batch.npy", batch)
        (aside / "batch.txt").write_text(_as_text(batch, record["records"], tokenizer))
        write_steps(aside, self._steps, self._attempt)
        (aside / "summary.md").write_text(_summary(record, list(self._steps), path))
        (aside / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        (aside / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        durable.replace_directory(aside, path)
        return path


def is_incident(scalars: Mapping[str, float]) -> bool:
    """Whether a step was a spike, or not finite."""
    return bool(scalars["train/spike"]) or not scalars["train/finite"]


def _directories(directory: Path) -> list[Path]:
    paths = sorted(path.parent for path in directory.glob(f"*/{RECORD}"))
    return [path for path in paths if path.suffix not in (".tmp", DAMAGED)]


def pinned(workdir: Path) -> set[int]:
    """The checkpoints that incidents are replayed from, as far as their records can be read."""
    pinned = set()
    for path in _directories(workdir / DIRECTORY):
        with contextlib.suppress(UserError):  # named where the run goes on
            pinned.add(_record(path)["checkpoint"])
    return pinned


def _record(path: Path) -> dict[str, Any]:
    """An incident's record with its config and identity; raises UserError where one of both is damaged."""
    try:
        record, config = safe_json.load(path / RECORD), safe_json.load(path / CONFIG)
        if type(record["checkpoint"]) is not int:
            raise ValueError("its checkpoint is no step")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the incident {path} is damaged ({type(error).__name__}: {error})") from error
    return record | config


def _set_damaged_aside(directory: Path, warn: Callable[[str], None]) -> None:
    """Renames the incidents whose records can't be read, so that none is counted or replayed."""
    for path in _directories(directory):
        try:
            _record(path)
        except UserError as error:
            aside = path.with_name(path.name + DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another of the run's hosts was faster
                path.replace(aside)
            warn(f"{error}: it is set aside as {aside.name}")


def read(workdir: Path, step: str) -> tuple[Path, dict[str, Any]]:
    """An incident's directory and record, by the directory's name: the step, with the attempt after a roll-back.

    Raises:
      UserError: there is none, or its record is damaged.
    """
    directory = workdir / DIRECTORY
    path = next((path for path in _directories(directory) if path.name == step), None)
    if path is None:
        has = ", ".join(path.name for path in _directories(directory)) or "none"
        raise UserError(f"no incident {step} in {workdir}; there is: {has}")
    return path, _record(path)


def read_steps(directory: Path, after: int, last: int) -> list[Remembered]:
    """The training steps in force after step `after` and up to `last`, of a workdir or what is read like one."""
    arrays = _by_step(read_measurements(directory, after=after))
    return [
        (
            line["step"],
            {name: value for name, value in line.items() if name not in ("step", "attempt")},
            arrays.get(line["step"], {}),
        )
        for line in in_force(list(each_line(directory / METRICS, after)))
        if line["step"] <= last and "train/loss" in line
    ]


def write_steps(directory: Path, steps: Iterable[Remembered], attempt: int = 0) -> None:
    """Writes steps into a directory that has none yet, to be read like a workdir."""
    metrics, columns = MetricsFile(directory / METRICS, -1, attempt), MeasurementFiles(directory, -1)
    for step, scalars, arrays in steps:
        metrics.write(step, scalars)
        columns.add(step, arrays)
    columns.flush()


def _by_step(measured: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[int, dict[str, np.ndarray]]:
    vectors: dict[int, dict[str, np.ndarray]] = {}
    for name, (steps, values) in measured.items():
        for step, vector in zip(steps, values, strict=True):
            vectors.setdefault(int(step), {})[name] = vector
    return vectors


def _as_text(batch: np.ndarray, records: list[int], tokenizer: Tokenizer) -> str:
    """The rows of a batch, cut where documents end."""
    parts = []
    for row, record in zip(batch, records, strict=True):
        ends = np.flatnonzero(row[:-1] == tokenizer.end) + 1
        documents = [_decoded(part, tokenizer) for part in np.split(row, ends)]
        parts.append(f"--- record {record}: {len(documents)} documents or parts of them\n" + "\n\n".join(documents))
    return "\n".join(parts) + "\n"


def _decoded(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of tokens, or why they have none: an incident is written down whatever is in its batch."""
    try:
        return tokenizer.decode(tokens.tolist())
    except Exception as error:  # each library raises its own
        return f"({len(tokens)} tokens that the tokenizer can't decode: {type(error).__name__}: {error})"


def _summary(record: dict[str, Any], steps: list[Remembered], path: Path) -> str:
    """One page: what was measured and done, and what is farthest from where it was before."""
    moved = "\n".join(
        f"| {what} | {before:.4g} | {now:.4g} | {z:+.0f} |" for z, what, before, now in farthest(steps)[:MOVERS]
    )
    return (
        f"# Step {record['step']}: {record['reason']}\n\n"
        f"Response: {record['response']}. Batch {record['batch']}: records {record['records']} of the training split "
        f"(batch.txt). Checkpoint before it: {record['checkpoint'] or 'the initial state'}.\n\n"
        "What is farthest from its median over the last "
        f"{len(steps) - 1} steps, in multiples of its median deviation from it (x1.48):\n\n"
        f"| measurement | median | at step {record['step']} | distance |\n|---|---|---|---|\n{moved}\n\n"
        "What moved first, and every measurement at that step:\n\n"
        f"    python main.py diagnose --workdir={path.parent.parent} --replay={path.name}\n"
    )


def farthest(steps: list[Remembered]) -> list[tuple[float, str, float, float]]:
    """(distance, name, median before, last value) of every measurement, the farthest first."""
    series: dict[str, list[float]] = collections.defaultdict(list)
    for _, scalars, arrays in steps:
        for name, value in scalars.items():
            series[name].append(float(value))
        for (
            name,
            vector,
        ) in arrays.items():  # an effective one often is the stored one up to a gate; a sketch has no scale
            if "_effective/" in name or "/sketch/" in name:
                continue
            for layer, value in enumerate(vector):
                series[f"{name}/{layer}"].append(float(value))
    distances = []
    for name, values in series.items():
        *before, last = values
        usual = np.array([value for value in before if np.isfinite(value)])
        if len(usual) < HISTORY // 10 or not name.startswith(("stability/", "train/grad", "train/log", "train/update")):
            continue
        median = float(np.median(usual))
        spread = float(robust_spread(usual - median)) + 1e-3 * abs(median) + 1e-30
        distance = (last - median) / spread if np.isfinite(last) else np.inf
        distances.append((float(distance), name, median, last))
    return sorted(distances, key=lambda item: -abs(item[0]))
