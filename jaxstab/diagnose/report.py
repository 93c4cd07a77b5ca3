"""`main.py diagnose`: reads a run and tells, in text, on a page and as JSON, what happened and where it began."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab import durable
from jaxstab.config import UserError
from jaxstab.diagnose.diagnosis import Diagnosis, diagnosed
from jaxstab.diagnose.figures import figures
from jaxstab.diagnose.foreign import read_log
from jaxstab.diagnose.history import History, read_history
from jaxstab.diagnose.page import page
from jaxstab.diagnose.sections import as_text, sections

REPORT = "report"


def diagnose(workdir: str | Path) -> Diagnosis:
    """Reads a run (finished, still going, or only its metrics.jsonl), prints what was the matter, and writes it.

    Writes `<workdir>/report/diagnose.html`, which needs nothing else, and `diagnose.json`, of which
    `cause`, `role`, `layer`, `head`, `step` and `evidence` are those of the likeliest cause.

    Raises:
      UserError: there is no run to read, or the report can't be written.
    """
    return report(read_history(workdir))


def diagnose_log(path: str | Path, workdir: str | Path | None = None) -> Diagnosis:
    """The same of another trainer's log; the report goes into `workdir`, or beside the log where none is given.

    Raises:
      UserError: there is no such log, it has no loss, or the report can't be written.
    """
    history = read_log(path)
    return report(dataclasses.replace(history, workdir=Path(workdir)) if workdir else history)


def report(history: History) -> Diagnosis:
    """Prints and writes the diagnosis of a history; raises UserError where it can't be written."""
    diagnosis = diagnosed(history)
    parts = sections(diagnosis)
    directory = history.workdir / REPORT
    marks = sorted({spike.first for spike in diagnosis.spikes} | {diagnosis.cause.step} - {0})
    below = f"Steps {diagnosis.steps[0]} to {diagnosis.steps[1]}."
    written = page(f"Diagnosis of {diagnosis.workdir}", below, parts, figures(history, marks))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        durable.write(directory / "diagnose.json", json.dumps(as_json(diagnosis), indent=1) + "\n")
        durable.write(directory / "diagnose.html", written)
    except OSError as error:
        raise UserError(f"the report can't be written to {directory}: {error.strerror}") from error
    heading = f"{diagnosis.workdir}, steps {diagnosis.steps[0]} to {diagnosis.steps[1]}"
    print("\n".join([heading, *as_text(parts), "", f"Page: {directory / 'diagnose.html'}"]))
    return diagnosis


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis, with the likeliest cause's fields beside it, as JSON takes it: no NaN, no NumPy."""
    return _plain(dataclasses.asdict(diagnosis.cause) | dataclasses.asdict(diagnosis))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
