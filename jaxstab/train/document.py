"""The pages that are written from the code: python -m jaxstab.train.document docs"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxstab.config import Declared, declared
from jaxstab.initialize import SCALES
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.model.norms import NORMS
from jaxstab.model.placements import PLACEMENTS
from jaxstab.optimize import CLIPS, DECAYS, OPTIMIZERS, PROJECTIONS, SCHEDULES
from jaxstab.reparam import METHODS
from jaxstab.search import SEARCHES
from jaxstab.train.config import NOT_TRAINING, Config

CONFIGURATION = """# Configuration

Generated from the code: `python -m jaxstab.train.document docs`.

A config file (`configs/*.py`) has a function `get_config` that returns the defaults below with some
changed. Any key is overridden on the command line, and arguments of the file itself follow its
name:

    python main.py --config=configs/wesar.py:size=130m,method=small --config.train.steps=2000 \\
        --workdir=runs/small

Tuples are written with commas, `--config.data.files=a/*.txt,b/*.txt`, bools as
`--config.model.bias` and `--noconfig.model.bias`. A range holds for each entry of a tuple. A
section with the key `method` chooses one function of a registry, whose options are the section of
that function's name. The command line takes those of the chosen function only; a config file may
set others too, which then have no effect.

The resolved config is saved in the workdir, and a run is continued only by a config that agrees
with it. Options of functions that aren't chosen don't count, and neither do these keys, which don't
change what is trained (but for rounding):

{free}.

A key that a run's config lacks, because the run is older than the key, has its default.
"""

METHODS_PAGE = """# Methods

Generated from the docstrings of the registered functions: `python -m jaxstab.train.document docs`.
How a formula is checked is said per row; *certainty* tells where its definition comes from: primary
(the paper or its authors' code), secondary (a translation, other people's code), remembered, or
this project's reading.
"""

# key of the choice: (title, registry)
REGISTRIES: dict[str, tuple[str, Mapping[str, Callable[..., Any]]]] = {
    "reparam.method": ("Reparameterizations", METHODS),
    "init.method": ("Initial scales", SCALES),
    "init_search.method": ("Searched initial scales", SEARCHES),
    "model.embedding.method": ("Embedding", EMBEDDINGS),
    "model.norm": ("Norms", NORMS),
    "model.norm_placement.method": ("Norm placement", PLACEMENTS),
    "optimizer.rule.method": ("Update rules", OPTIMIZERS),
    "optimizer.clip.method": ("Clipping", CLIPS),
    "optimizer.decay.method": ("Weight decay", DECAYS),
    "optimizer.projection.method": ("Projections after the update", PROJECTIONS),
    "optimizer.schedule.method": ("Schedules", SCHEDULES),
}
FIELDS = ("Formula", "Paper", "Parameters", "Checked against", "Certainty")


def notes(function: Callable[..., Any]) -> dict[str, str]:
    """The fields of a registered function's docstring; a field ends where the next begins, or at an empty line."""
    doc = inspect.getdoc(function) or ""
    pattern = rf"^({'|'.join(FIELDS)}): (.*?)(?=\n(?:{'|'.join(FIELDS)}): |\n\n|\Z)"
    return {name: " ".join(text.split()) for name, text in re.findall(pattern, doc, re.DOTALL | re.MULTILINE)}


def methods_page() -> str:
    """docs/methods.md, in Markdown."""
    tables = [_registry(key, title, registry) for key, (title, registry) in REGISTRIES.items()]
    return "\n".join([METHODS_PAGE, *tables])


def _registry(key: str, title: str, registry: Mapping[str, Callable[..., Any]]) -> str:
    rows = []
    for name, function in registry.items():
        summary = (inspect.getdoc(function) or "").split("\n\n")[0]
        fields = notes(function)
        cells = [f"`{name}`", " ".join(summary.split()), *(fields.get(field, "") for field in FIELDS)]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    head = f"| `{key}` | what it is | formula | paper | parameters | checked against | certainty |"
    return "\n".join([f"## {title}", "", head, "|---" * (len(FIELDS) + 2) + "|", *rows, ""])


def configuration_page() -> str:
    """docs/configuration.md, in Markdown."""
    keys = ", ".join(f"`{prefix}*`" if prefix.endswith(".") else f"`{prefix}`" for prefix in NOT_TRAINING)
    free = textwrap.fill(keys, 100, break_on_hyphens=False)
    sections = [_section(field.name, field.default_factory) for field in dataclasses.fields(Config)]
    return "\n".join([CONFIGURATION.format(free=free), *sections])


def _section(name: str, cls: Any) -> str:
    doc = inspect.getdoc(cls) or ""
    intro = [textwrap.fill(" ".join(doc.split()), 100)] if doc and not doc.startswith(cls.__name__) else []
    head = ["| key | type | default | range | what it is |", "|---|---|---|---|---|"]
    return "\n".join([f"## {name}", "", *intro, *[""] * bool(intro), *head, *map(_row, declared(cls, f"{name}.")), ""])


def _row(key: Declared) -> str:
    doc = key.doc + (f" One of {', '.join(f'`{choice}`' for choice in key.choices)}." if key.choices else "")
    cells = f"`{key.key}`", key.type, f"`{key.default!r}`", str(key.range or ""), doc
    return f"| {' | '.join(cells)} |".replace("<|", "&lt;\\|").replace("|>", "\\|&gt;")


PAGES = {"configuration.md": configuration_page, "methods.md": methods_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(sys.argv[1]) / name).write_text(page())
