"""The report of a comparison, in Markdown and in HTML that needs nothing else, and its rows."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxstab.compare import tables
from jaxstab.compare.comparison import Law
from jaxstab.compare.curves import Figure, figures
from jaxstab.compare.grid import Grid
from jaxstab.compare.orderings import Published, beside
from jaxstab.compare.promotion import promotions
from jaxstab.compare.tables import Result, Table
from jaxstab.diagnose.page import document, escape, table
from jaxstab.train.record import versions
from jaxstab.train.workdir import make, write_text_whole

FIGURES = "figures"
LOSSES = ("validation_loss", "train_loss")  # the first that all runs have judges them


def loss_of(rows: Sequence[Result]) -> str:
    """The loss by which rows are judged."""
    return next(each for each in LOSSES if all(each in row or row["diverged"] for row in rows))


def write(
    grid: Grid,
    rows: Sequence[Result],
    law: Law,
    times: Mapping[str, Any],
    workdir: Path,
    published: Sequence[Published] = (),
) -> None:
    """Writes `results.jsonl`, `report.md` with its figures beside it, and `report.html`, which has them in itself.

    Args:
      grid: that is run.
      rows: of all cells that are done.
      law: of the comparison.
      times: see `tables.cost`.
      workdir: of the comparison.
      published: what papers report of methods by the same names.
    """
    every, rows = rows, tables.sound(rows)
    loss = loss_of(rows)
    theirs = [table for each in published for table in beside(each, rows, loss, law)]
    told = [each for each in [*_tables(rows, law, loss, times), *theirs, tables.failures(every)] if each.rows]
    drawn, below = figures(rows, loss, workdir), _setting(grid, rows)
    sections = [(each.title, _html(each)) for each in told] + [(each.title, _drawn(each)) for each in drawn]
    pictures = {each.title: f"{FIGURES}/{each.title.lower().replace(' ', '-')}.svg" for each in drawn if each.svg}
    make(workdir / FIGURES)
    for each in drawn:
        if each.svg:
            write_text_whole(workdir / pictures[each.title], each.svg)
    write_text_whole(workdir / "results.jsonl", "".join(json.dumps(row) + "\n" for row in every))
    parts = [each.markdown for each in told] + [_marked(each, pictures.get(each.title, "")) for each in drawn]
    write_text_whole(workdir / "report.md", tables.wrapped("\n".join([f"# Comparison\n\n{below}\n", *parts])))
    write_text_whole(workdir / "report.html", document("Comparison", below, sections))


def _tables(rows: Sequence[Result], law: Law, loss: str, times: Mapping[str, Any]) -> list[Table]:
    common = [tables.at_the_common_rate(rows, law.baseline, loss)] if law.baseline in tables.variants(rows) else []
    perplexity = loss.replace("loss", "perplexity")
    perplexities = [tables.by_rate(rows, perplexity)] if any(perplexity in row for row in rows) else []
    return [
        tables.at_their_best(rows, law.baseline, loss),
        *common,
        promotions(rows, loss, law),
        tables.evaluated(rows, loss),
        *perplexities,
        tables.over_rates(rows, law.baseline, loss),
        tables.spiking(rows),
        tables.cost(rows, times),
    ]


def _html(each: Table) -> str:
    below = f"<p>{escape(each.below)}</p>" if each.below else ""
    return table(each.head, ([escape(cell) for cell in row] for row in each.rows)) + below


def _drawn(figure: Figure) -> str:
    caption = f'<p class="caption">{escape(figure.caption)}</p>\n'
    if figure.missing:
        return caption + f'<p class="missing">{escape(figure.missing)}</p>'
    numbers = (f"<details><summary>{escape(each.title)}</summary>{_html(each)}</details>" for each in figure.numbers)
    return caption + figure.svg + "\n".join(numbers)


def _marked(figure: Figure, path: str) -> str:
    """A figure in Markdown."""
    picture = f"![{figure.title}]({path})" if path else figure.missing
    numbers = "".join(f"\n{each.title}:\n\n{each.body}" for each in figure.numbers)
    return f"## {figure.title}\n\n{figure.caption}\n\n{picture}\n{numbers}"


def _setting(grid: Grid, rows: Sequence[Result]) -> str:
    config = grid.cells[0].config
    steps, batch, length = config.train.steps, config.train.batch_size, config.data.length
    seeds, parameters = len({row["seed"] for row in rows}), np.median([row["parameters"] for row in rows])
    names, data = {row["cell"] for row in rows}, ", ".join(config.data.files) or config.data.source
    done = sum(cell.name in names for cell in grid.cells)
    more = f", and {len(rows) - done} of earlier grids" if len(rows) > done else ""
    return (
        f"{done} of {len(grid.cells)} runs{more}; {steps} steps of {batch} x {length} tokens each, from {data}; "
        f"{config.model.layers} blocks of width {config.model.width}, {parameters:,.0f} parameters; "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}, {len(tables.rates(rows))} learning rates. {_made()}"
    )


def _made() -> str:
    """On what and with what the report is written."""
    devices = collections.Counter(device.device_kind for device in jax.devices())
    kinds = ", ".join(f"{count} x {kind}" for kind, count in devices.items())
    return f"Written on {kinds}, with {', '.join(f'{name} {version}' for name, version in versions().items())}."
