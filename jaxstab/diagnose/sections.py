"""What is said of a run, as sections that the terminal and the page both render."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from jaxstab.diagnose.causes import CAUSES, Advice, Cause
from jaxstab.diagnose.conditions import Condition
from jaxstab.diagnose.diagnosis import Diagnosis
from jaxstab.diagnose.moved import Spike

MOST = 8  # lines of a list, and steps in a row
WIDTH = 110  # of a line in the terminal; where a row is longer, its last cell has its own line


@dataclasses.dataclass(frozen=True)
class Marked:
    """A text in one of the page's styles."""

    text: str
    style: str = ""

    def __str__(self) -> str:
        return self.text


class Paragraph(Marked):
    """A paragraph, of style "verdict", "heading", "caption" or none."""


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of sentences."""

    lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Rows:
    """A table; cells of style "code" are to be typed, and a verdict's cell is coloured by its first word."""

    head: tuple[str, ...]
    rows: tuple[tuple[Marked, ...], ...]


Block = Paragraph | Items | Rows


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report, with what stands in it."""

    title: str
    blocks: tuple[Block, ...]


def sections(diagnosis: Diagnosis) -> list[Section]:
    """The report on a run, but for its figures."""
    return [
        Section("What happened", _what_happened(diagnosis.causes)),
        Section("Spikes by each definition", _definitions(diagnosis)),
        Section("What moved before", _moved(diagnosis.spikes)),
        Section("Conditions of the papers", _conditions(diagnosis.conditions)),
        Section("What would be changed", _advice(diagnosis.advice)),
    ]


def as_text(parts: Iterable[Section]) -> list[str]:
    """Lines for the terminal."""
    lines = []
    for section in parts:
        lines += ["", f"{section.title}:"]
        for block in section.blocks:
            if isinstance(block, Paragraph):
                lines.append(f"  {block}")
            elif isinstance(block, Items):
                lines += [f"    {line}" for line in block.lines]
            else:
                lines += _aligned(block.rows)
    return lines


def _aligned(rows: tuple[tuple[Marked, ...], ...]) -> list[str]:
    """Rows with their columns aligned; last cells in lines of their own where one of them would be too long."""
    widths = [max(len(cell.text) for cell in column) for column in zip(*rows, strict=True)]
    before = "\n      " if sum(widths) + 2 * len(widths) > WIDTH else ""
    lines = []
    for *cells, last in rows:
        padded = [cell.text.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        lines += "  ".join(["", *padded, before + last.text]).splitlines()
    return [line.rstrip() for line in lines]


def _what_happened(causes: tuple[Cause, ...]) -> tuple[Block, ...]:
    first, *others = causes
    blocks: list[Block] = [Paragraph(f"Cause: {_in_words(first)}", "verdict"), Items(first.evidence)]
    if others:
        left_out = [f"... and {len(others) - MOST} more"] if len(others) > MOST else []
        listed = (*map(_in_words, others[:MOST]), *left_out)
        blocks += [Paragraph("Also seen, which the first may explain:"), Items(listed)]
    return tuple(blocks)


def _in_words(cause: Cause) -> str:
    place = f": {cause.place}" if cause.place else ""
    step = f" from step {cause.step}" if cause.step else ""
    return f"{cause.cause}{place}{step} ({CAUSES[cause.cause].meaning})"


def _definitions(diagnosis: Diagnosis) -> tuple[Block, ...]:
    rows = []
    for name, steps in diagnosis.definitions.items():
        listed = ", ".join(map(str, steps[:MOST])) + (", ..." if len(steps) > MOST else "")
        rows.append((Marked(name), Marked(str(len(steps))), Marked(listed)))
    bad = [f"{name} was not finite at {count} steps." for name, count in diagnosis.nonfinite.items() if count]
    return Rows(("definition", "steps", "which"), tuple(rows)), Paragraph(" ".join(bad) or "Every value was finite.")


def _moved(spikes: tuple[Spike, ...]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for spike in spikes:
        steps = f"step {spike.first}" if spike.first == spike.last else f"steps {spike.first} to {spike.last}"
        blocks += [Paragraph(f"Spike at {steps}", "heading"), Paragraph(", ".join(spike.by), "caption")]
        moved = tuple(map(str, spike.moved[:MOST]))
        blocks.append(Items(moved or ("nothing measured left its own range before it",)))
    return tuple(blocks) or (Paragraph("No spike by OLMo 2's or SkipStep's definition, nor by the run's own rule."),)


def _conditions(judged: tuple[Condition, ...]) -> tuple[Block, ...]:
    verdicts = [Marked(each.verdict, each.verdict.split()[0]) for each in judged]
    rows = tuple(
        (Marked(each.paper), Marked(each.condition), verdict, Marked(each.measured))
        for each, verdict in zip(judged, verdicts, strict=True)
    )
    return (Rows(("paper", "condition", "", "measured"), rows),)


def _advice(advice: tuple[Advice, ...]) -> tuple[Block, ...]:
    if not advice:
        return (Paragraph("Nothing."),)
    flags = [" ".join(f"--config.{key}" for key in each.keys.split()) for each in advice]
    rows = tuple((Marked(keys, "code"), Marked(each.why)) for keys, each in zip(flags, advice, strict=True))
    return (Rows(("config", "why"), rows),)
