"""`main.py diagnose`: reads a run and tells, in text, on a page and as JSON, what happened and where it began."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab.config import UserError
from jaxstab.diagnose.cause import CAUSES, Cause, find_causes
from jaxstab.diagnose.conditions import Advice, Condition, advice, conditions
from jaxstab.diagnose.figures import figures
from jaxstab.diagnose.moved import Spike, flagged, spikes
from jaxstab.diagnose.page import page
from jaxstab.diagnose.series import Run, read_run
from jaxstab.stability.definitions import nonfinite

REPORT = "report"


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is said of a run.

    Attributes:
      steps: the first and last step read.
      causes: best borne out first.
      definitions: {"OLMo 2 on loss": flagged steps}.
      nonfinite: {metric: how many values weren't finite}.
    """

    workdir: str
    steps: tuple[int, int]
    causes: tuple[Cause, ...]
    definitions: dict[str, tuple[int, ...]]
    nonfinite: dict[str, int]
    spikes: tuple[Spike, ...]
    conditions: tuple[Condition, ...]
    advice: tuple[Advice, ...]

    @property
    def cause(self) -> Cause:
        return self.causes[0]


def diagnosed(run: Run) -> Diagnosis:
    """The diagnosis of a run that was read."""
    steps, _ = run.one("train/loss")
    causes, found, flags = find_causes(run), conditions(run), flagged(run)
    judged = ("train/loss", "train/grad_norm", "train/update_norm")
    return Diagnosis(
        workdir=str(run.workdir),
        steps=(int(steps[0]), int(steps[-1])),
        causes=tuple(causes),
        definitions={name: tuple(map(int, at)) for name, at in flags.items()},
        nonfinite={name: nonfinite(run.one(name)[1]) for name in judged if name in run.series},
        spikes=tuple(spikes(run, flags)),
        conditions=tuple(found),
        advice=tuple(advice(run, causes, found)),
    )


def diagnose(workdir: str | Path) -> Diagnosis:
    """Reads a run (finished, still going, or only its metrics.jsonl), prints what it finds, and writes it.

    Writes `<workdir>/report/diagnose.html`, which needs nothing else, and `diagnose.json`, of which
    `cause`, `role`, `layer`, `head`, `step` and `evidence` are those of the likeliest cause.

    Raises:
      UserError: there is no run to read, or the report can't be written.
    """
    run = read_run(workdir)
    found = diagnosed(run)
    directory = run.workdir / REPORT
    marks = sorted({spike.first for spike in found.spikes} | {found.cause.step} - {0})
    drawn = figures(run, marks)
    try:
        directory.mkdir(exist_ok=True)
        (directory / "diagnose.json").write_text(
            json.dumps(_json(dataclasses.asdict(found.cause) | dataclasses.asdict(found)), indent=1) + "\n"
        )
        (directory / "diagnose.html").write_text(page(found, drawn))
    except OSError as error:
        raise UserError(f"the report can't be written to {directory}: {error.strerror}") from error
    print("\n".join([*text(found), "", f"Page: {directory / 'diagnose.html'}"]))
    return found


def text(found: Diagnosis) -> list[str]:
    """What is said of a run, in lines."""
    cause = found.cause
    lines = [f"{found.workdir}, steps {found.steps[0]} to {found.steps[1]}", ""]
    at = f" from step {cause.step}" if cause.step else ""
    place = f": {cause.place}" if cause.place else ""
    lines += [f"Cause: {cause.cause}{place}{at} ({CAUSES[cause.cause]})", *(f"  {line}" for line in cause.evidence)]
    for other in found.causes[1:6]:
        lines.append(f"  also: {other.cause} {other.place} from step {other.step}".replace("  from", " from"))
    lines += ["", "Spikes:"]
    for name, steps in found.definitions.items():
        listed = ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
        lines.append(f"  {name:28} {len(steps):6}{'  at ' + listed if steps else ''}")
    lines += [f"  {name} was not finite at {count} steps" for name, count in found.nonfinite.items() if count]
    for spike in found.spikes:
        lines.append(
            f"  Before the spike of step {spike.first}:" + ("" if spike.moved else " nothing left its own range")
        )
        lines += [f"    {moved}" for moved in spike.moved[:5]]
    lines += ["", "Conditions of the papers:"]
    word = {True: "holds", False: "fails", None: "unknown"}
    lines += [f"  {word[each.holds]:8}{each.paper}: {each.condition}; {each.found}" for each in found.conditions]
    lines += ["", "What would change it:" if found.advice else "Nothing to change."]
    lines += [
        f"  {' '.join('--config.' + key for key in each.keys.split())}\n      {each.why}" for each in found.advice
    ]
    return lines


def _json(value: Any) -> Any:
    """As JSON takes it: no NaN, no NumPy."""
    if isinstance(value, dict):
        return {key: _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
