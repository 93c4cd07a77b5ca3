"""docs/configuration.md, written from the declared keys: python -m jaxstab.train.document > docs/configuration.md"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from jaxstab.config import declared
from jaxstab.train.config import NOT_TRAINING, Config

HEAD = """# Configuration

Generated from the code: `python -m jaxstab.train.document > docs/configuration.md`.

A config file (`configs/*.py`) has a function `get_config` that returns the defaults below with some changed. Any key is
overridden on the command line, and arguments of the file itself follow its name:

    python main.py --config=configs/wesar.py:size=130m,method=small --config.train.steps=2000 --workdir=runs/small

Tuples are written with commas, `--config.data.files=a/*.txt,b/*.txt`, bools as `--config.model.bias` and
`--noconfig.model.bias`. A section with the key `method` chooses one function of a registry, whose options are the
section of that function's name. The resolved config is saved in the workdir, and a run is continued only by a config
that agrees with it in every key but these, which don't change what is trained: {free}.
"""


def configuration_page() -> str:
    """The whole page, in Markdown."""
    free = ", ".join(f"`{prefix}*`" if prefix.endswith(".") else f"`{prefix}`" for prefix in NOT_TRAINING)
    sections = [_section(field.name, field.default_factory) for field in dataclasses.fields(Config)]
    return "\n".join([HEAD.format(free=free), *sections])


def _section(name: str, cls: Any) -> str:
    doc = inspect.getdoc(cls) or ""
    intro = [" ".join(doc.split())] if doc and not doc.startswith(cls.__name__) else []
    head = ["| key | type | default | what it is |", "|---|---|---|---|"]
    return "\n".join([f"## {name}", "", *intro, *[""] * bool(intro), *head, *map(_row, declared(cls, f"{name}.")), ""])


def _row(key: tuple[str, str, Any, str, tuple[Any, ...] | None]) -> str:
    name, kind, default, doc, choices = key
    allowed = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
    return f"| `{name}` | {kind} | `{default!r}` | {doc}{allowed} |".replace("<|", "&lt;\\|").replace("|>", "\\|&gt;")


if __name__ == "__main__":
    print(configuration_page(), end="")
