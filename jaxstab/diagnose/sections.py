"""What is said of a run, as sections that the terminal and the page both render."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from jaxstab.diagnose.causes import CAUSES, Cause
from jaxstab.diagnose.conditions import Condition
from jaxstab.diagnose.diagnosis import Diagnosis
from jaxstab.diagnose.moved import Spike
from jaxstab.diagnose.normal import SPAN

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
        Section("What to do", _what_to_do(diagnosis)),
        Section("Evidence", _evidence(diagnosis.causes)),
        Section("Spikes by each definition", _definitions(diagnosis)),
        Section("What moved before", _moved(diagnosis.spikes)),
        Section("Conditions of the papers", _conditions(diagnosis.conditions)),
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


SURE = {
    "fact": "a fact: it was measured",
    "identity": "exact: it breaks an identity that holds in every run",
    "bound": "a bound that follows from the config was passed",
    "statistic": "a statistic: it is unlike what is usual for this run",
}


def _what_happened(causes: tuple[Cause, ...]) -> tuple[Block, ...]:
    """The first cause in full, and a line for each other."""
    first, *others = causes
    blocks: list[Block] = [Paragraph(f"Cause: {_in_words(first)}", "verdict")]
    if first.cause != "none":
        facts = (
            ("where", first.place or "no one place"),
            ("when", _when(first)),
            ("how sure", SURE[first.certainty]),
            ("cost", _cost(first)),
        )
        blocks.append(Rows(("", ""), tuple((Marked(name), Marked(value)) for name, value in facts)))
    if others:
        left_out = [f"... and {len(others) - MOST} more"] if len(others) > MOST else []
        lines = (f"{_in_words(each)}, {_when(each)}, {_cost(each)}" for each in others[:MOST])
        blocks += [Paragraph("Also borne out:"), Items((*lines, *left_out))]
    return tuple(blocks)


def _in_words(cause: Cause) -> str:
    place = f": {cause.place}" if cause.place else ""
    step = f" from step {cause.step}" if cause.step else ""
    return f"{cause.cause}{place}{step} ({CAUSES[cause.cause].meaning})"


def _when(cause: Cause) -> str:
    return f"step {cause.step}" if cause.last <= cause.step else f"steps {cause.step} to {cause.last}"


def _cost(cause: Cause) -> str:
    """What a cause cost, in words; a mean below a hundredth of a nat is noise."""
    if cause.cost is None:
        return "cost unknown: there is no trend before it"
    if cause.cost < 0.01:
        return "no cost that shows in the loss"
    return f"{cause.cost:+.2f} nats beside the trend before, in the mean over it or over the {SPAN} steps after"


def _what_to_do(diagnosis: Diagnosis) -> tuple[Block, ...]:
    """What is done about the first cause; the config's changes are one instead of the other."""
    remedy = CAUSES[diagnosis.cause.cause].remedy
    blocks: list[Block] = [Paragraph(remedy)] if remedy else []
    if diagnosis.advice:
        flags = [" ".join(f"--config.{key}" for key in each.keys.split()) for each in diagnosis.advice]
        rows = tuple(
            (Marked("or" if i else "train with"), Marked(keys, "code"), Marked(each.why))
            for i, (keys, each) in enumerate(zip(flags, diagnosis.advice, strict=True))
        )
        blocks.append(Rows(("", "config", "why"), rows))
    return tuple(blocks) or (Paragraph("Nothing."),)


def _evidence(causes: tuple[Cause, ...]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for cause in causes[:MOST]:
        blocks += [Paragraph(_in_words(cause), "heading"), Items(cause.evidence)]
        if cause.followed:
            blocks += [Paragraph("What came of it:"), Items(cause.followed[:MOST])]
    return tuple(blocks)


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
