"""Running the cells of a comparison, each in a directory of its own, and reading off what it came to."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxstab import safe_json
from jaxstab.compare.grid import Cell
from jaxstab.compare.measured import Lines, Series, measures, spikes
from jaxstab.compare.tables import Result
from jaxstab.config import UserError, flatten
from jaxstab.logging import in_force, read_measurements, read_metrics
from jaxstab.logging.run import METRICS
from jaxstab.stability.definitions import nonfinite
from jaxstab.table import count
from jaxstab.train import workdir as workdirs
from jaxstab.train.config import Config
from jaxstab.train.loop import train
from jaxstab.train.program import Program
from jaxstab.train.recovery import UnstableError
from jaxstab.train.setup import reparameterized
from jaxstab.train.signals import StopRequest

Begin = Callable[[Config, Path], Any]  # (config, a run's directory)

RESULT = "result.json"
TAIL = 0.1  # of the steps, whose mean loss is that at the end: chosen
# Nats that the loss at the end lies above the lowest of any stretch of that length: chosen, far above the noise of a
# mean over a tenth of a run, so that a run that came back from a spike hasn't diverged.
DIVERGED = 0.5
AT_END = ("log_z", "grad_norm", "grad_norm_effective", "update_norm", "tokens_per_second")


def first_line(error: Exception) -> str:
    """What an error says on its first line; a device's has many."""
    return str(error).partition("\n")[0]


def directory_of(workdir: Path, cell: str) -> Path:
    """The workdir of a cell, by its name."""
    return workdir / "cells" / cell


def row_of(workdir: Path, cell: Cell) -> Result | None:
    """The row of a cell that is done; None where it isn't."""
    path = directory_of(workdir, cell.name) / RESULT
    return read(path) if path.is_file() else None


def read(path: Path) -> Result:
    """What a comparison wrote down of a run, or of the time of a variant's step.

    Raises:
      UserError: the file can't be read.
    """
    try:
        row = safe_json.load(path)
        if not isinstance(row, dict) or "variant" not in row:
            raise ValueError("it has no variant")
        return row
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}); delete it, and it is made again") from error


def run_cell(
    workdir: Path,
    cell: Cell,
    programs: Callable[..., Program] | None = None,
    request: StopRequest | None = None,
    begin: Begin | None = None,
    results: tuple[type[Exception], ...] = (UnstableError, jax.errors.JaxRuntimeError),
) -> Result | None:
    """Trains a cell to its end, going on where it was stopped; returns None where another process is at work on it.

    A run that stops because its loss isn't finite or because a spike stops it has diverged; one whose device fails in
    it has failed, which says nothing of its method. Both are results. What a user can mend isn't: no data, say, or a
    full disk.

    Args:
      workdir: of the comparison.
      cell: what is run.
      programs, request: as `train` takes them.
      begin: makes a new run's directory, with the weights that it begins with; None where it draws them.
      results: the errors that are a result of the run.

    Raises:
      UserError: the run can't be made, or the device has failed before its first step was written down.
    """
    directory = directory_of(workdir, cell.name)
    if begin:
        _begin(begin, cell, directory)
    else:
        workdirs.make(directory)
    stopped, failed = "", False
    try:
        train(cell.config, directory, Console(quiet=True), programs, request)
    except workdirs.BusyError:
        return None
    except results as error:
        stopped, failed = first_line(error), isinstance(error, jax.errors.JaxRuntimeError)
    lines = in_force(read_metrics(directory / METRICS)) if (directory / METRICS).is_file() else []
    if not any("train/loss" in line for line in lines):
        raise UserError(stopped or f"{directory} has no step of a run")
    stored = reparameterized(workdirs.saved_config(directory))[2].table
    row = summary(cell, lines, read_measurements(directory), stopped, failed) | {"parameters": count(stored)}
    workdirs.write_whole(directory / RESULT, row)
    return row


def _begin(begin: Begin, cell: Cell, directory: Path) -> None:
    """Makes the directory of a new run, which is there whole or not at all, whatever other processes do."""
    if directory.exists():
        return
    workdirs.make(directory.parent)
    with tempfile.TemporaryDirectory(dir=directory.parent.parent) as beside:
        begin(cell.config, Path(beside) / cell.name)
        with contextlib.suppress(OSError):  # another process was faster, or else:
            (Path(beside) / cell.name).rename(directory)
    if not (directory / workdirs.CONFIG).exists():
        raise UserError(f"{directory} can't be made")


def summary(
    cell: Cell, lines: Lines, measured: Mapping[str, Series], stopped: str = "", failed: bool = False
) -> dict[str, Any]:
    """What a run came to; numbers that aren't finite are left out.

    Args:
      cell: of the grid.
      lines: of metrics.jsonl, those in force.
      measured: see `read_measurements`.
      stopped: why it ended early; "" where it didn't.
      failed: whether that was its device.
    """
    training = [line for line in lines if "train/loss" in line]
    losses = np.array([line["train/loss"] for line in training])
    tail = max(1, round(TAIL * len(losses)))
    means = np.convolve(losses, np.full(tail, 1 / tail), "valid")
    final = float(means[-1])
    evaluated = {name: value for line in lines for name, value in line.items() if name.startswith("eval/")}
    keys = flatten(cell.config)
    row = {
        "cell": cell.name,
        "variant": cell.variant,
        "method": cell.method,
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        **{key: keys[key] for key, _ in cell.varied},
        "steps": len(losses),
        "initial_loss": float(losses[0]),
        "train_loss": final,
        **{name.removeprefix("eval/").replace("/", "_"): value for name, value in evaluated.items()},
        "diverged": not failed and bool(stopped or not np.isfinite(final) or final > np.nanmin(means) + DIVERGED),
        "failed": failed,
        "stopped": stopped,
        "spikes": int(sum(line.get("train/spike", 0) for line in training)),
        "nonfinite": nonfinite(losses),
        **{name: _median_at_end(training[-tail:], f"train/{name}") for name in AT_END},
        **spikes(training),
        **measures(training, measured),
    }
    return {name: value for name, value in row.items() if not isinstance(value, float) or np.isfinite(value)}


def _median_at_end(training: Lines, name: str) -> float:
    values = [line[name] for line in training if name in line]
    return float(np.median(values)) if values else np.nan
