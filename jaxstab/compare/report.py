"""`main.py compare`: runs a grid of methods, and writes what they came to."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from jaxstab.compare import tables
from jaxstab.compare.cells import Row, row_of, run_cell
from jaxstab.compare.curves import loss_against_rate, loss_curves
from jaxstab.compare.grid import Cell, Grid
from jaxstab.config import UserError
from jaxstab.diagnose.page import document, escape, table
from jaxstab.logging.console import say
from jaxstab.train import workdir as workdirs

LOSSES = ("validation_loss", "train_loss")  # the first that all runs have judges them


def compare(grid: Grid, workdir: Path, share: tuple[int, int] = (0, 1), console: Console | None = None) -> None:
    """Runs the cells of a grid that aren't done, and writes `results.jsonl`, `report.md` and `report.html`.

    Started again with the same workdir it goes on: cells that are done are left alone, one that was stopped in its
    middle goes on from its last checkpoint. Several processes or machines may share a workdir: a cell that another is
    at work on is passed over.

    Args:
      grid: the cells, whose first method is the baseline.
      workdir: of the comparison; every cell has a directory below it.
      share: (i, n): of every n cells that with the number i.
      console: is told how far it is.

    Raises:
      UserError: a cell can't be run at all.
    """
    console = console or Console(highlight=False)
    workdirs.make(workdir)
    cells = [cell for cell in grid.share(*share) if row_of(workdir, cell) is None]
    tokens = sum(cell.config.train.steps * cell.config.train.batch_size * cell.config.data.length for cell in cells)
    say(console, f"{len(grid.cells)} cells, {len(cells)} to be run here, {tokens:,} tokens, into {workdir}")
    _run(cells, workdir, console)
    rows = [row for cell in grid.cells if (row := row_of(workdir, cell))]
    if rows:
        _write(grid, rows, workdir)
        say(console, f"{len(rows)} of {len(grid.cells)} cells are done: {workdir / 'report.html'}")


def _run(cells: Sequence[Cell], workdir: Path, console: Console) -> None:
    start = time.monotonic()
    for number, cell in enumerate(cells):
        row = run_cell(workdir, cell)
        passed = time.monotonic() - start
        left = passed / (number + 1) * (len(cells) - number - 1)
        told = "another process is at work on it" if row is None else _told(row)
        say(console, f"{number + 1}/{len(cells)} {cell.name}: {told}; {left / 60:.0f} min left")


def _told(row: Row) -> str:
    if row["diverged"]:
        return f"diverged{', ' + row['stopped'] if row['stopped'] else ''}"
    return f"loss {row[next(loss for loss in LOSSES if loss in row)]:.4f}"


def _write(grid: Grid, rows: Sequence[Row], workdir: Path) -> None:
    baseline = rows[0]["variant"]
    loss = next(each for each in LOSSES if all(each in row or row["diverged"] for row in rows))
    made = [
        tables.at_their_best(rows, baseline, loss),
        tables.over_rates(rows, loss),
        tables.by_rate(rows, loss),
        tables.cost(rows, baseline),
    ]
    below = _setting(grid, rows)
    figures = [
        ("Loss against learning rate", loss_against_rate(rows, loss)),
        ("Loss at the best rate", loss_curves(rows, loss, workdir)),
    ]
    sections = [
        (each.title, table(each.head, ([escape(cell) for cell in row] for row in each.rows)) + f"<p>{each.below}</p>")
        for each in made
    ]
    try:
        (workdir / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (workdir / "report.md").write_text("\n".join([f"# Comparison\n\n{below}\n", *(each.markdown for each in made)]))
        (workdir / "report.html").write_text(document("Comparison", below, [*sections, *figures]))
    except OSError as error:
        raise UserError(f"the report can't be written to {workdir}: {error.strerror}") from error


def _setting(grid: Grid, rows: Sequence[Row]) -> str:
    config = grid.cells[0].config
    steps, batch, length = config.train.steps, config.train.batch_size, config.data.length
    seeds, parameters = len({row["seed"] for row in rows}), np.median([row["parameters"] for row in rows])
    return (
        f"{len(rows)} of {len(grid.cells)} runs; {steps} steps of {batch} x {length} tokens each, "
        f"{config.model.layers} blocks of width {config.model.width}, {parameters:,.0f} parameters; "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}, {len(tables.rates(rows))} learning rates."
    )
