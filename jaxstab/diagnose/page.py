"""The page of a diagnosis: one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterable

from jaxstab.diagnose.figures import Figure
from jaxstab.diagnose.sections import Block, Items, Marked, Paragraph, Section

FIRST = 2  # sections of the first screen
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin-bottom: 0; }
nav { columns: 2; font-size: .9rem; margin: 1rem 0; } nav a { display: block; } a { color: #1a5fb4; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid #eee; }
.verdict { background: #f4f6f9; border-left: 4px solid #1a5fb4; padding: .6rem 1rem; font-size: 1.1rem; }
.holds { color: #1b7837; } .outside { color: #8a6100; } .fails { color: #b2182b; }
.unknown, .missing, .caption { color: #777; }
code { background: #f3f3f3; padding: .05rem .3rem; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } .caption { margin: 0; }
"""


def page(title: str, below: str, sections: Iterable[Section], figures: Iterable[Figure]) -> str:
    """The page, in HTML: a section of text each, then a section for every figure."""
    texts = [(section.title, "\n".join(map(_block, section.blocks))) for section in sections]
    return document(title, below, [*texts, *((figure.title, _drawn(figure)) for figure in figures)], FIRST)


def document(title: str, below: str, sections: list[tuple[str, str]], first: int = 0) -> str:
    """A page of named sections, with the table of contents after the `first` of them."""
    links = "\n".join(f'<a href="#s{i}">{escape(name)}</a>' for i, (name, _) in enumerate(sections))
    bodies = [f'<h2 id="s{i}">{escape(name)}</h2>\n{body}' for i, (name, body) in enumerate(sections)]
    newline = "\n"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>{escape(below)}</p>
{newline.join(bodies[:first])}
<nav>{links}</nav>
{newline.join(bodies[first:])}
</body></html>
"""


def escape(text: object) -> str:
    return html.escape(str(text))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells in HTML."""
    names = [escape(cell) for cell in head]
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"] if any(names) else []
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        tag = "h3" if block.style == "heading" else "p"
        return f'<{tag} class="{block.style}">{escape(block)}</{tag}>'
    if isinstance(block, Items):
        return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in block.lines) + "</ul>"
    return table(block.head, ([_cell(cell) for cell in row] for row in block.rows))


def _cell(cell: Marked) -> str:
    if cell.style == "code":
        return " ".join(f"<code>{escape(word)}</code>" for word in cell.text.split())
    return f'<span class="{cell.style}">{escape(cell)}</span>' if cell.style else escape(cell)


def _drawn(figure: Figure) -> str:
    body = f'<p class="missing">{escape(figure.missing)}</p>' if figure.missing else figure.svg
    return f'<p class="caption">{escape(figure.caption)}</p>\n{body}'
