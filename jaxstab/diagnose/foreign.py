"""Logs of other trainers: a loss, a gradient norm and a rate by step, from wherever they are written.

JSON lines (MaxText, torchtitan, levanter and whoever writes metrics.jsonl), a Hugging Face `trainer_state.json`, and
TensorBoard's event files. What belongs to a step is told by the names that these trainers give it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from jaxstab import safe_json
from jaxstab.config import UserError
from jaxstab.diagnose.history import History, Series

# By what is read, the names that it goes by: the first that a log has is taken.
NAMES = {
    "train/loss": (
        "train/loss",
        "loss",
        "train_loss",
        "learning/loss",  # MaxText
        "loss_metrics/global_avg_loss",  # torchtitan
        "global_avg_loss",
        "lm loss",  # Megatron-LM
    ),
    "train/grad_norm": (
        "train/grad_norm",
        "grad_norm",
        "gradient_norm",
        "learning/grad_norm",  # MaxText
        "learning/raw_grad_norm",
        "grad/norm/total",  # levanter
        "optim/total_grad_norm",  # OLMo
        "grad-norm",  # Megatron-LM
    ),
    "train/learning_rate": (
        "train/learning_rate",
        "learning_rate",
        "lr",
        "learning/current_learning_rate",  # MaxText
        "optim/learning_rate",  # levanter
        "optim/learning_rate_group0",  # OLMo
        "learning-rate",  # Megatron-LM
    ),
}
LAST_STEP = 2**53
STEPS = ("step", "global_step", "_step", "iteration")
EVENTS = "events.out.tfevents.*"
JSON_FILES = ("trainer_state.json", "metrics.jsonl")

Points = dict[str, dict[int, float]]  # {name: {step: value}}; the value that was written last counts


def read_log(path: str | Path) -> History:
    """Reads the log of another trainer.

    Args:
      path: a `.jsonl` file, a `trainer_state.json`, an event file, or a directory with one of these.

    Raises:
      UserError: there is no such log, or it has no loss by step.
    """
    path = Path(path)
    points = _points(path)
    series = {ours: _series(points[name]) for ours, names in NAMES.items() if (name := _first(names, points))}
    if "train/loss" not in series:
        has = ", ".join(sorted(points)[:6]) or "nothing"
        raise UserError(
            f"{path} has no loss by step; it has {has}, and a loss is one of: {', '.join(NAMES['train/loss'])}"
        )
    return History(path if path.is_dir() else path.parent, series, frozenset(), {})


def _first(names: Iterable[str], points: Mapping[str, Any]) -> str:
    return next((name for name in names if name in points), "")


def _series(by_step: Mapping[int, float]) -> Series:
    steps = np.array(sorted(by_step), np.int64)
    return Series(steps, np.array([[by_step[int(step)]] for step in steps], np.float64))


def _points(path: Path) -> Points:
    if path.is_dir():
        inside = [path / name for name in JSON_FILES if (path / name).is_file()]
        if inside:
            return _points(inside[0])
        if any(path.rglob(EVENTS)):
            return _of_events(path)
        raise UserError(f"{path} has neither {' nor '.join(JSON_FILES)} nor TensorBoard's {EVENTS}")
    if not path.is_file():
        raise UserError(f"there is no log {path}")
    return _of_events(path.parent, path) if "tfevents" in path.name else _of_json(path)


def _of_json(path: Path) -> Points:
    """Points of a file of JSON lines, or of a `trainer_state.json`, whose log is a list."""
    text = path.read_text(errors="replace")
    try:
        whole = safe_json.loads(text)
        lines = whole.get("log_history", [whole]) if isinstance(whole, dict) else whole
    except ValueError:
        lines = [line for line in map(_parsed, text.splitlines()) if line is not None]
    points: Points = defaultdict(dict)
    for number, line in enumerate(lines if isinstance(lines, list) else []):
        if isinstance(line, dict):
            step = _number(line.get(_first(STEPS, line), number))
            for name, value in line.items():
                if name not in STEPS and _is_step(step) and (read := _number(value)) is not None:
                    points[name][int(step)] = read
    return points


def _parsed(line: str) -> Any:
    try:
        return safe_json.loads(line)
    except ValueError:
        return None  # a last line that a kill has torn, or a remark between lines


def _number(value: Any) -> float | None:
    """A number, also one that was written as text, "nan" for instance; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _is_step(step: float | None) -> TypeGuard[float]:
    return step is not None and 0 <= step <= LAST_STEP


def _of_events(directory: Path, path: Path | None = None) -> Points:
    """Points of TensorBoard's event files in and below a directory, or of one, scalars or tensors of one number."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    points: Points = defaultdict(dict)
    for file in [path] if path else sorted(directory.rglob(EVENTS)):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                numbers = tensor_util.make_ndarray(value.tensor) if value.HasField("tensor") else np.zeros(0)
                if numbers.size == 1 and numbers.dtype.kind == "f" and math.prod(numbers.shape) == 1:
                    points[value.tag][int(event.step)] = float(numbers.ravel()[0])
    return points
