"""Running a grid: what it will take, cell after cell, and the report of all that is done."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxstab.compare import ahead, promotion, report, together
from jaxstab.compare.cells import Begin, first_line, read, row_of, run_cell
from jaxstab.compare.comparison import Law, begun, check_methods, read_comparison, rows_of
from jaxstab.compare.grid import Cell, Grid
from jaxstab.compare.orderings import Published
from jaxstab.compare.programs import Programs
from jaxstab.compare.tables import Result, sound
from jaxstab.config import UserError
from jaxstab.logging.console import say, shown
from jaxstab.train import workdir as workdirs
from jaxstab.train.config import Config
from jaxstab.train.signals import Stopped

TIMES = "step_times"  # a file for each variant
REPORTED = 600.0  # seconds after which a report is written again


def compare(
    config: Config,
    grid: Grid,
    workdir: Path,
    share: tuple[int, int] = (0, 1),
    threshold: float | None = None,
    until_promotion: bool = False,
    published: Sequence[Published] = (),
    source: str = "",
    begin: Begin | None = None,
    console: Console | None = None,
) -> None:
    """Runs the cells of a grid that aren't done, and writes `results.jsonl`, `report.md` and `report.html`.

    Started again with the same workdir it goes on: cells that are done are left alone, one that was stopped in its
    middle goes on from its last checkpoint. Several processes or machines may share a workdir: a cell that another is
    at work on is passed over. The report is of all cells in the workdir, those of earlier grids too.

    Args:
      config: what all cells share.
      grid: the cells, whose first method is the baseline.
      workdir: of the comparison; every cell has a directory below it.
      share: (i, n): of every n cells that with the number i.
      threshold: the largest p at which a difference isn't noise, fixed when the comparison is begun; None for that one,
        and 0.05 in a new workdir.
      until_promotion: whether only those cells are run that the law needs: the first seed everywhere, then the others
        of the methods that it doesn't put behind the baseline, at their best rates.
      published: what papers report of methods by the same names.
      source: of the weights that runs begin with; "" where they are drawn.
      begin: puts these into a new run's directory.
      console: is told how far it is.

    Raises:
      UserError: cells can't be run, which is told when the others have been, or the workdir is that of another
        comparison.
    """
    console = console or Console(highlight=False)
    workdirs.make(workdir)
    with begun(workdir, config, grid, threshold, source) as law:
        check_methods(workdir, grid)
        if until_promotion:
            promotion.check_seeds(len({cell.seed for cell in grid.cells}), law.threshold)
        runner = Runner(grid, workdir, law, slice(share[0], None, share[1]), published, begin, console)
        try:
            if until_promotion:
                runner.run_until_promotion()
            else:
                runner.run(grid.cells)
            runner.time_steps()
        except (Stopped, KeyboardInterrupt):
            runner.report_so_far()
            raise
        runner.report()
        runner.check()


class Runner:
    """What running cells takes: the programs that they share, and where they are kept."""

    def __init__(
        self,
        grid: Grid,
        workdir: Path,
        law: Law,
        share: slice,
        published: Sequence[Published],
        begin: Begin | None,
        console: Console,
    ):
        self._grid, self._workdir, self._law, self._share, self._published = grid, workdir, law, share, published
        self._begin = begin
        self._console, self._tell = console, functools.partial(say, console)
        self._programs, self._of_baseline = Programs(), Programs()
        self._trials = together.Trials(self._programs, self._tell)
        self._refused: dict[str, UserError] = {}  # by the name of the cell
        self._untimed: set[str] = set()
        self._reported = time.monotonic()

    def check(self) -> None:
        """Raises UserError where cells couldn't be run."""
        if not self._refused:
            return
        (name, error), *others = self._refused.items()
        more = f", nor can {len(others)} {'other' if len(others) == 1 else 'others'}" if others else ""
        raise UserError(f"{name} can't be run{more}: {error}")

    def run_until_promotion(self) -> None:
        """Runs the first seed, and where that is done the seeds that judge."""
        screening = promotion.screening(self._grid, self._law)
        self.run(screening)
        screened = [row_of(self._workdir, cell) for cell in screening if cell.name not in self._refused]
        missing = sum(row is None or bool(row.get("failed")) for row in screened)
        if missing:
            self._tell(
                f"{missing} runs of seed {self._law.seed} aren't done, or failed and need their result.json deleted; "
                "after them the same command goes on to the others"
            )
            return
        rows = sound(rows_of(self._workdir, self._grid))
        chosen = promotion.chosen_rates(rows, report.loss_of(rows), self._law)
        for variant, rate in promotion.unjudged(self._grid, chosen).items():
            self._tell(f"{variant} isn't judged: it is best at {rate:g}, which --learning_rates hasn't")
        self.run(promotion.deciding(self._grid, chosen))

    def run(self, cells: Sequence[Cell]) -> None:
        """Runs the cells of this machine's share that aren't done."""
        groups = together.groups([cell for cell in cells[self._share] if row_of(self._workdir, cell) is None])
        due = [cell for group in groups for cell in group]
        sample = self._sample(groups) if due else None
        if sample is None:
            return
        self._tell(
            f"{len(due)} of {len(cells)} runs to be made here, into {self._workdir}: "
            f"{ahead.told(due, len(groups), sample)}"
        )
        outcomes = self._outcomes(groups, sample)
        for place, cell in enumerate(shown(self._console, "runs")(due), 1):
            self._tell(f"{place}/{len(due)} {cell.name}: {next(outcomes)}")

    def _sample(self, groups: Sequence[Sequence[Cell]]) -> ahead.Sample | None:
        """A step of the first run that can take one; None where none can, and all are refused."""
        errors: dict[str, UserError] = {}
        for group in groups:
            self._tell(f"Compiling a step of {group[0].name}, and taking {ahead.STEPS} ...")
            try:
                return ahead.sample(group[0].config, self._programs)
            except (UserError, jax.errors.JaxRuntimeError) as error:  # the runs say so themselves where others go on
                errors |= {cell.name: UserError(first_line(error)) for cell in group}
        self._refused |= errors
        return None

    def _outcomes(self, groups: Sequence[Sequence[Cell]], sample: ahead.Sample) -> Iterator[str]:
        """Runs cells, those that share a program together where that is faster; what each came to, in their order."""
        for group in groups:
            choice = self._trials.choose(group, sample)
            for part in together.parts(group, choice.at_once if choice else 1):
                self._check_law()
                outcomes: Mapping[str, Result | UserError | None] = {}
                if choice and len(part) > 1:
                    outcomes = together.run_together(
                        self._workdir, part, self._programs, choice, self._tell, self._begin
                    )
                for cell in part:
                    yield self._outcome(cell, outcomes)
                if time.monotonic() > self._reported + REPORTED:
                    self.report_so_far()

    def _check_law(self) -> None:
        """Raises UserError where another command, which found no run in the workdir, began it anew."""
        if read_comparison(self._workdir)[0] != self._law:
            raise UserError(f"another command has begun {self._workdir} anew, otherwise; take another workdir")

    def _outcome(self, cell: Cell, outcomes: Mapping[str, Result | UserError | None]) -> str:
        """What a cell came to, which is run unless it has its outcome among those of a part."""
        if cell.name not in outcomes and (row := row_of(self._workdir, cell)):
            return f"{_told(row)}, by another process"
        outcome = outcomes[cell.name] if cell.name in outcomes else self._alone(cell)
        if outcome is None:
            return "another process is at work on it"
        if isinstance(outcome, UserError):
            self._refused[cell.name] = outcome
            return f"can't be run: {outcome}"
        self._time(cell)
        return _told(outcome)

    def _alone(self, cell: Cell) -> Result | UserError | None:
        try:
            return run_cell(self._workdir, cell, self._programs, begin=self._begin)
        except UserError as error:
            return error

    def time_steps(self) -> None:
        """Times the steps of variants that have runs and no time; those whose command was killed, say."""
        for cell in self._grid.cells[self._share]:
            if row_of(self._workdir, cell) is not None:
                self._time(cell)

    def _time(self, cell: Cell) -> None:
        """Times a variant's step beside the baseline's, once; where that fails the run's own outcome stands."""
        path = self._workdir / TIMES / f"{cell.variant.replace('/', '_')}.json"
        baseline = next((each for each in self._grid.cells if each.variant == self._law.baseline), None)
        if path.exists() or baseline is None or cell.variant in self._untimed:
            return
        try:
            workdirs.make(path.parent)
            steppers = (
                ahead.stepper_of(cell.config, self._programs),
                ahead.stepper_of(baseline.config, self._of_baseline),
            )
            times = ahead.in_turns(*steppers, cell.config.train.steps)
            workdirs.write_whole(path, {"variant": cell.variant, **times._asdict()})
        except (UserError, jax.errors.JaxRuntimeError) as error:  # two models at once may be more than memory takes
            self._untimed.add(cell.variant)
            self._tell(f"the step of {cell.variant} isn't timed: {first_line(error)}")

    def report_so_far(self) -> None:
        """Writes the report of what is done; an error of it is told, and ends nothing."""
        self._reported = time.monotonic()
        try:
            self._written()
        except UserError as error:
            self._tell(f"no report is written: {error}")

    def _written(self) -> list[Result]:
        """The rows that say something of their methods, whose report is written."""
        every = rows_of(self._workdir, self._grid)
        rows, failed = sound(every), [row["cell"] for row in every if row.get("failed")]
        if failed:
            self._tell(f"the device failed in {', '.join(failed)}")
        if rows:
            report.write(self._grid, every, self._law, _times(self._workdir), self._workdir, self._published)
            done = {row["cell"] for row in every} & {cell.name for cell in self._grid.cells}
            self._tell(f"{len(done)} of {len(self._grid.cells)} runs done: {self._workdir / 'report.html'}")
        return rows

    def report(self) -> None:
        """Writes the report of all that is done, and tells what is due on the next rung."""
        rows = self._written()
        if not rows:
            return
        judgements = promotion.judgements(rows, report.loss_of(rows), self._law)
        promoted = [each.variant for each in judgements if each.word == "promoted"]
        if promoted:
            methods = {row["variant"]: row["method"] for row in rows}
            names = ",".join(dict.fromkeys(methods[each] for each in (self._law.baseline, *promoted)))
            self._tell(f"Promoted, and due on the next rung with --methods={names}: {'; '.join(promoted)}")


def _times(workdir: Path) -> Mapping[str, Any]:
    times = [read(path) for path in workdir.glob(f"{TIMES}/*.json")]
    return {each["variant"]: each for each in times}


def _told(row: Result) -> str:
    if row.get("failed"):
        return f"failed, {row['stopped']}"
    if row["diverged"]:
        return f"diverged{', ' + row['stopped'] if row['stopped'] else ''}"
    return f"loss {row[next(loss for loss in report.LOSSES if loss in row)]:.4f}"
