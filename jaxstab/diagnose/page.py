"""The page of a diagnosis: one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jaxstab.diagnose.cause import CAUSES, Cause
from jaxstab.diagnose.figures import Figure

if TYPE_CHECKING:
    from jaxstab.diagnose.report import Diagnosis

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin-bottom: 0; }
nav { columns: 2; font-size: .9rem; margin: 1rem 0; } nav a { display: block; } a { color: #1a5fb4; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid #eee; }
.verdict { background: #f4f6f9; border-left: 4px solid #1a5fb4; padding: .6rem 1rem; }
.verdict b { font-size: 1.1rem; }
.holds { color: #1b7837; } .fails { color: #b2182b; } .unknown, .missing, .caption { color: #777; }
code { background: #f3f3f3; padding: .05rem .3rem; white-space: nowrap; }
svg { width: 100%; height: auto; } .caption { margin: 0; }
"""


def page(found: Diagnosis, figures: Iterable[Figure]) -> str:
    """The page, in HTML."""
    sections = [
        ("What happened", _verdict(found)),
        ("Spikes by each definition", _definitions(found)),
        ("What moved before", _moved(found)),
        ("Conditions of the papers", _conditions(found)),
        ("What would be changed", _advice(found)),
        *((figure.title, _drawn(figure)) for figure in figures),
    ]
    return document(f"Diagnosis of {found.workdir}", f"Steps {found.steps[0]} to {found.steps[1]}.", sections)


def document(title: str, below: str, sections: list[tuple[str, str]]) -> str:
    """A page of named sections with a table of contents."""
    links = "\n".join(f'<a href="#s{i}">{escape(name)}</a>' for i, (name, _) in enumerate(sections))
    bodies = "\n".join(f'<h2 id="s{i}">{escape(name)}</h2>\n{body}' for i, (name, body) in enumerate(sections))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>{escape(below)}</p>
<nav>{links}</nav>
{bodies}
</body></html>
"""


def escape(text: object) -> str:
    return html.escape(str(text))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells in HTML."""
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _verdict(found: Diagnosis) -> str:
    others = "".join(f"<li>{_cause(cause)}</li>" for cause in found.causes[1:9])
    return f'<div class="verdict"><b>{_cause(found.cause)}</b>{_items(found.cause.evidence)}</div>' + (
        f"<p>Also seen, which the first may explain:</p><ul>{others}</ul>" if others else ""
    )


def _cause(cause: Cause) -> str:
    place = f", {escape(cause.place)}" if cause.place else ""
    step = f", from step {cause.step}" if cause.step else ""
    return f"{escape(CAUSES[cause.cause]).capitalize()}{place}{step}"


def _items(lines: Iterable[object]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _definitions(found: Diagnosis) -> str:
    rows = []
    for name, steps in found.definitions.items():
        listed = ", ".join(map(str, steps[:20])) + (", ..." if len(steps) > 20 else "")
        rows.append((escape(name), str(len(steps)), listed))
    bad = [f"{name} was not finite at {count} steps." for name, count in found.nonfinite.items() if count]
    return (
        table(("definition", "steps", "which"), rows) + f"<p>{escape(' '.join(bad) or 'Every value was finite.')}</p>"
    )


def _moved(found: Diagnosis) -> str:
    if not found.spikes:
        return "<p>No spike by OLMo 2's or SkipStep's definition.</p>"
    parts = []
    for spike in found.spikes:
        steps = f"step {spike.first}" if spike.first == spike.last else f"steps {spike.first} to {spike.last}"
        moved = _items(spike.moved[:8]) if spike.moved else "<p>Nothing measured left its own range before it.</p>"
        parts.append(f'<h3>Spike at {steps}</h3><p class="caption">{escape(", ".join(spike.by))}</p>{moved}')
    return "\n".join(parts)


def _conditions(found: Diagnosis) -> str:
    word = {True: "holds", False: "fails", None: "unknown"}
    rows = []
    for each in found.conditions:
        holds = f'<span class="{word[each.holds]}">{word[each.holds]}</span>'
        rows.append((escape(each.paper), escape(each.condition), holds, escape(each.found)))
    return table(("paper", "condition", "", "measured"), rows)


def _advice(found: Diagnosis) -> str:
    rows = [
        (" ".join(f"<code>--config.{escape(key)}</code>" for key in each.keys.split()), escape(each.why))
        for each in found.advice
    ]
    return table(("config", "why"), rows) if rows else "<p>Nothing.</p>"


def _drawn(figure: Figure) -> str:
    body = f'<p class="missing">{escape(figure.missing)}</p>' if figure.missing else figure.svg
    return f'<p class="caption">{escape(figure.caption)}</p>\n{body}'
