"""Cells that share a program, run as one where a measured trial says that this is faster."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxstab.compare import ahead
from jaxstab.compare.cells import Begin, first_line, row_of, run_cell
from jaxstab.compare.grid import Cell
from jaxstab.compare.lockstep import Joint, Lockstep, joint_step
from jaxstab.compare.programs import Programs, shared_keys
from jaxstab.compare.tables import Result
from jaxstab.config import UserError
from jaxstab.train.program import Program
from jaxstab.train.recovery import UnstableError
from jaxstab.train.signals import StopRequest

# All chosen. A trial compiles a program and takes a share of a run's steps: it is made where the runs take many times
# as long, and of a device's memory some is left for evaluations.
PAYS = 10  # times the compilation of a step, that the runs of a group take one by one
FEWER = 5  # times fewer rounds than for the cost of a method, since each takes steps of every run
FILLED = 0.8  # of a device's memory


class Choice(NamedTuple):
    """How the cells of a group are run together.

    Attributes:
      at_once: how many.
      joint: their step.
      ratio: its time over that of as many steps one after the other.
    """

    at_once: int
    joint: Joint
    ratio: float


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Those that share a program, in the order of the first of them."""
    by_program: dict[str, list[Cell]] = {}
    for cell in cells:
        by_program.setdefault(repr(shared_keys(cell.config)), []).append(cell)
    return list(by_program.values())


def parts(cells: Sequence[Cell], most: int) -> list[Sequence[Cell]]:
    """As few parts of at most so many cells as there can be, of sizes that differ by one at most."""
    count = math.ceil(len(cells) / most)
    ends = [len(cells) * number // count for number in range(count + 1)]
    return [cells[start:end] for start, end in itertools.pairwise(ends)]


class Trials:
    """Measures whether groups are faster together.

    Once a group isn't, the others of the same command run one by one without a trial: on one device methods of one
    model differ little in that, and every trial compiles a program.
    """

    def __init__(self, programs: Programs, tell: Callable[[str], None]):
        """Trials of programs from `programs`, whose outcomes `tell` takes, a line each."""
        self._programs, self._tell, self._open = programs, tell, True

    def choose(self, cells: Sequence[Cell], sample: ahead.Sample) -> Choice | None:
        """How the cells of a group are run together; None where they aren't.

        Args:
          cells: of a group.
          sample: a trial step of one run.
        """
        config = cells[0].config
        if not self._open or len(cells) * config.train.steps * sample.step < PAYS * sample.compiling:
            return None
        try:
            program = ahead.program_of(config, self._programs)
        except UserError:  # each of the runs says so itself
            return None
        if program.setup.mesh.size > 1:
            return None
        count = max(map(len, parts(cells, max(1, fitting(sample, program)))))
        while count > 1:
            try:
                return self._measured(program, count)
            except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
                self._tell(f"{count} runs can't be taken as one program: {first_line(error)}")
                count = math.ceil(count / 2)
        return None

    def _measured(self, program: Program, count: int) -> Choice | None:
        config, (tokens, hypers) = program.setup.config, ahead.inputs_of(program)
        joint, seeds = joint_step(program, count), range(count)
        together = ahead.Stepper(joint, tuple(map(program.init, seeds)), (tokens,) * count, (hypers,) * count)
        alone = ahead.Repeated(ahead.Stepper(program.step, program.init(0), tokens, hypers), count)
        times = ahead.in_turns(together, alone, config.train.steps // FEWER)
        ratio, control = times.ratio, times.control
        self._open = ratio.high < control.low
        self._tell(
            f"a step of {count} runs as one program takes {ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] of the "
            f"time of {count} steps (control {control.mean:.2f} [{control.low:.2f}, {control.high:.2f}]): they run "
            f"{'together' if self._open else 'one after the other'}"
        )
        return Choice(count, joint, ratio.mean) if self._open else None


def fitting(sample: ahead.Sample, program: Program) -> int:
    """How many runs a device has memory for: each takes what a step does, and its state twice more, stacked.

    Args:
      sample: a trial step of one run.
      program: of the runs.
    """
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.abstract_state))
    return int(FILLED * _memory(program.setup.mesh.devices.flat[0]) // (sample.memory + 2 * state))


def _memory(device: jax.Device) -> int:
    """Bytes of a device; those of the machine where it doesn't say, as a CPU."""
    has: Mapping[str, Any] = device.memory_stats() or {}
    return has.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def run_together(
    workdir: Path,
    cells: Sequence[Cell],
    programs: Programs,
    choice: Choice,
    tell: Callable[[str], None],
    begin: Begin | None = None,
) -> dict[str, Result | UserError | None]:
    """Runs cells that share a program as one, each as `run_cell` does, with its workdir, its lock and its checkpoints.

    Args:
      workdir: of the comparison.
      cells: at most `choice.at_once`.
      programs: that of the cells.
      choice: how they are run.
      tell: takes a line where the device fails.
      begin: as `run_cell` takes it.

    Returns:
      A row by the cell's name, None where another process is at work on it, an error where it can't be run. Those are
      missing that are done already, and those that have to go on alone because the device failed in a step of all.

    Raises:
      Stopped: by a signal; every run is saved.
    """
    due = [cell for cell in cells if row_of(workdir, cell) is None]
    if not due:
        return {}
    program = ahead.program_of(due[0].config, programs)
    lockstep = Lockstep(program.step, choice.joint, choice.at_once, choice.ratio, len(due))
    outcomes: dict[str, Result | Exception | None] = {}

    def run(number: int, cell: Cell, request: StopRequest) -> None:
        with lockstep.member(number) as stepping:
            try:
                outcomes[cell.name] = run_cell(
                    workdir, cell, lambda *given: stepping(programs(*given)), request, begin, results=(UnstableError,)
                )
            except Exception as error:  # raised below, in the thread that people hear of
                outcomes[cell.name] = error

    with StopRequest().listening() as request:
        threads = [threading.Thread(target=run, args=(*each, request), daemon=True) for each in enumerate(due)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return _rows({cell.name: outcomes[cell.name] for cell in due}, tell)


def _rows(
    outcomes: Mapping[str, Result | Exception | None], tell: Callable[[str], None]
) -> dict[str, Result | UserError | None]:
    rows: dict[str, Result | UserError | None] = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, jax.errors.JaxRuntimeError):
            tell(f"{name} goes on alone: {first_line(outcome)}")
        elif isinstance(outcome, Exception) and not isinstance(outcome, UserError):
            raise outcome
        else:
            rows[name] = outcome
    return rows
