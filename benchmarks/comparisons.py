"""What `main.py compare` left in its workdirs, and where a benchmark writes what it makes of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from jaxstab.compare.tables import Result, sound, wrapped


def rows_of(parser: argparse.ArgumentParser, workdirs: Sequence[Path]) -> list[Result]:
    """The rows of comparisons' runs whose device didn't fail; an error of the command line where one has none."""
    paths = [workdir / "results.jsonl" for workdir in workdirs]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        parser.error(f"no {', '.join(missing)}: --workdir is that of `main.py compare`")
    rows = sound([json.loads(line) for path in paths for line in path.read_text().splitlines()])
    return rows or parser.error(f"no run is in {', '.join(map(str, paths))}")


def directories_of(workdir: Path) -> list[Path]:
    """The workdirs of a comparison's runs that are done, and whose device didn't fail."""
    paths = sorted(workdir.glob("cells/*/result.json"))
    return [path.parent for path in paths if not json.loads(path.read_text()).get("failed")]


def write(out: Path, name: str, text: str, numbers: Any = None) -> None:
    """Writes tables, their prose wrapped, and numbers, where there are any, below a directory; shows the tables."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(wrapped(text))
    if numbers is not None:
        (out / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(text)


def save(figure: Any, path: Path) -> None:
    """Writes a figure, the same bytes for the same figure."""
    with matplotlib.rc_context({"svg.hashsalt": "jaxstab"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
