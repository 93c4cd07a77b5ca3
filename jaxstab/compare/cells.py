"""Running the cells of a comparison, each in a directory of its own, and reading off what it came to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxstab.compare.grid import Cell
from jaxstab.config import UserError, from_flat
from jaxstab.logging import in_force, read_metrics
from jaxstab.logging.run import METRICS
from jaxstab.stability.definitions import nonfinite
from jaxstab.table import count
from jaxstab.train import workdir as workdirs
from jaxstab.train.config import Config
from jaxstab.train.loop import train
from jaxstab.train.setup import reparameterized

RESULT = "result.json"
TAIL = 0.1  # of the steps, whose mean loss is that at the end: chosen
# Nats that the loss at the end lies above the lowest of any stretch of that length: chosen, far above the noise of a
# mean over a tenth of a run, so that a run that came back from a spike hasn't diverged.
DIVERGED = 0.5
AT_END = ("train/log_z", "train/grad_norm", "train/grad_norm_effective", "train/update_norm", "train/tokens_per_second")

Row = dict[str, Any]


def row_of(workdir: Path, cell: Cell) -> Row | None:
    """The row of a cell that is done; None where it isn't."""
    path = _directory(workdir, cell) / RESULT
    return json.loads(path.read_text()) if path.is_file() else None


def _directory(workdir: Path, cell: Cell) -> Path:
    return workdir / "cells" / cell.name


def run_cell(workdir: Path, cell: Cell) -> Row | None:
    """Trains a cell to its end, going on where it was stopped; returns None where another process is at work on it.

    A run that stops because its loss isn't finite, or because a spike stops it, is a result.

    Raises:
      UserError: nothing could be trained, which would be so for every cell: no data, say.
    """
    directory = _directory(workdir, cell)
    workdirs.make(directory)
    stopped = ""
    try:
        train(cell.config, directory, Console(quiet=True))
    except workdirs.BusyError:
        return None
    except UserError as error:
        if not (directory / METRICS).is_file():
            raise
        stopped = str(error)
    saved = from_flat(Config, json.loads((directory / workdirs.CONFIG).read_text())["config"])
    stored = reparameterized(saved)[2].table
    row = summary(cell, read_metrics(directory / METRICS), stopped) | {"parameters": count(stored)}
    workdirs.write_whole(directory / RESULT, row)
    return row


def summary(cell: Cell, lines: Iterable[dict[str, Any]], stopped: str = "") -> Row:
    """What a run came to, from the lines of its metrics; numbers that aren't finite are left out.

    Args:
      cell: of the grid.
      lines: of metrics.jsonl.
      stopped: why it ended early; "" where it didn't.
    """
    lines = in_force(list(lines))
    training = [line for line in lines if "train/loss" in line]
    losses = np.array([line["train/loss"] for line in training])
    tail = max(1, round(TAIL * len(losses)))
    means = np.convolve(losses, np.full(tail, 1 / tail), "valid")
    final = float(means[-1])
    diverged = bool(stopped or not np.isfinite(final) or final > np.nanmin(means) + DIVERGED)
    judged = {name: value for line in lines for name, value in line.items() if name.startswith("eval/")}
    last = {name: float(np.median([line[name] for line in training[-tail:] if name in line])) for name in AT_END}
    row = {
        "cell": cell.name,
        "variant": cell.variant,
        "method": cell.method,
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        **dict(cell.varied),
        "steps": len(losses),
        "initial_loss": float(losses[0]),
        "train_loss": final,
        **{f"{name.split('/')[1]}_loss": value for name, value in judged.items() if name.endswith("/loss")},
        "diverged": diverged,
        "stopped": stopped,
        "spikes": int(sum(line.get("train/spike", 0) for line in training)),
        "nonfinite": nonfinite(losses),
        **{name.removeprefix("train/"): value for name, value in last.items()},
    }
    return {name: value for name, value in row.items() if not isinstance(value, float) or np.isfinite(value)}
