"""`main.py diagnose --replay=<step>`: replays an incident from the checkpoint before it, with everything measured."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from jaxstab import data
from jaxstab.config import UserError, from_flat
from jaxstab.diagnose.diagnosis import Diagnosis
from jaxstab.diagnose.report import diagnose
from jaxstab.logging import read_metrics
from jaxstab.logging.run import METRICS
from jaxstab.train import incidents
from jaxstab.train import workdir as workdirs
from jaxstab.train.checkpoint import Checkpoints
from jaxstab.train.config import Config
from jaxstab.train.journal import Journal
from jaxstab.train.packed import pack, unpack
from jaxstab.train.program import Program, build
from jaxstab.train.state import TrainState
from jaxstab.train.step_io import StepInputs

DIRECTORY = "replay"

Steps = dict[int, tuple[dict[str, Any], dict[str, Any]]]  # {step: (scalars, arrays)}


def replay(workdir: str | Path, name: str, console: Console) -> Diagnosis:
    """Replays the steps from the checkpoint before an incident to it, and diagnoses them.

    The steps are taken by the run's own program, bitwise as they were on a CPU; at some, the last ones above all, a
    second program makes the full measurements of the state that went in. Writes `incidents/<name>/replay/`, which holds
    what a workdir does: metrics, measurements and the report.

    Args:
      workdir: of a run that isn't at work.
      name: the incident's directory: the step, with the attempt after a roll-back.
      console: where it says what it does.

    Raises:
      UserError: no such incident, the run is at work, or the data isn't what it was.
    """
    workdir = Path(workdir)
    path, record = incidents.read(workdir, name)
    config = from_flat(Config, record["config"])
    corpus = data.prepare(config.data)
    if corpus.digest != record["identity"]["data_digest"]:
        raise UserError(f"data.files={config.data.files} are not what the run in {workdir} was trained on")
    program = build(config, corpus.tokenizer.end)
    inputs = StepInputs(program, corpus.train, Journal.of(record["journal"]))
    end = record["step"]
    with workdirs.alone(workdir), Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints:
        start = _before(record, checkpoints)
        measured = points(start + 1, end)
        is_saved = start in checkpoints.steps()
        origin = f"checkpoint {start}" if is_saved else "the initial state"
        console.print(
            f"Replaying steps {start + 1} to {end} from {origin}, with full measurements at "
            f"{', '.join(map(str, measured))}. Compiling ...",
            soft_wrap=True,
        )
        state = checkpoints.restore(start, program.abstract_state)[0] if is_saved else inputs.initial_state(console)
    replayed = _taken_again(program, inputs, state, start, end, measured, console)
    console.print(_compared(replayed, read_metrics(path / METRICS)), soft_wrap=True)
    return diagnose(_written(path, replayed, start))


def _before(record: dict[str, Any], checkpoints: Checkpoints) -> int:
    """The pinned checkpoint; where a later roll-back has abandoned it, the newest one before it on the same branch."""
    on_branch = (at for at, attempt in checkpoints.attempts().items() if attempt <= record["attempt"])
    return max((at for at in on_branch if at <= record["checkpoint"]), default=0)


def points(first: int, last: int) -> list[int]:
    """The steps at which everything is measured: the first, and then ever more closely up to the last."""
    before = itertools.takewhile(lambda at: at > first, (last - 2**power + 1 for power in range(20)))
    return sorted({first, last, *before})


def _taken_again(
    program: Program, inputs: StepInputs, state: TrainState, start: int, end: int, measured: list[int], console: Console
) -> Steps:
    """The steps after `start`, taken once more."""
    replayed = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("steps", total=end - start)
        for step, tokens in enumerate(inputs.ahead(start + 1, end), start + 1):
            more = [pack(*program.measure(state, tokens, inputs.hypers(step)))] if step in measured else []
            state, metrics = program.step(state, tokens, inputs.hypers(step))
            replayed[step] = unpack(metrics, *more)
            progress.advance(task)
    return replayed


def _compared(replayed: Steps, lines: list[dict[str, Any]]) -> str:
    """A sentence that says whether the replayed steps were bitwise those of the run."""
    known = {line["step"]: line["train/loss"] for line in lines if line["step"] in replayed}
    other = [step for step, loss in known.items() if repr(replayed[step][0]["train/loss"]) != repr(loss)]
    if not other:
        return f"Bitwise as it was: the losses of {len(known)} steps are those of the run."
    step = other[0]
    return (
        f"Not bitwise as it was: from step {step} on the loss differs ({replayed[step][0]['train/loss']!r} here, "
        f"{known[step]!r} there). Another jax, machine or XLA_FLAGS than the run's rounds otherwise; on a GPU both "
        "need XLA_FLAGS=--xla_gpu_deterministic_ops=true."
    )


def _written(path: Path, replayed: Steps, start: int) -> Path:
    """A directory that is read like a run's: what led to the checkpoint, as it was logged, and the steps replayed."""
    directory = path / DIRECTORY
    after = [(step, *measurements) for step, measurements in replayed.items()]
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        shutil.copy(path / workdirs.CONFIG, directory)
        incidents.write_steps(directory, [*incidents.read_steps(path, -1, start), *after])
    except OSError as error:
        raise UserError(f"{directory} can't be written: {error.strerror}") from error
    return directory
