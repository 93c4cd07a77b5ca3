"""What a run writes and shows: metrics, measurements, TensorBoard and the console, all through `RunLogger`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxstab.config import Options, Range, UserError, option
from jaxstab.logging.columns import MeasurementFiles
from jaxstab.logging.console import RunConsole
from jaxstab.logging.dashboard import Dashboard
from jaxstab.logging.jsonl import MetricsFile, count_spikes

METRICS = "metrics.jsonl"
EVENTS = "TensorBoard events"


@dataclasses.dataclass(frozen=True)
class LogConfig(Options):
    """What is shown of a run; metrics.jsonl has every step in any case."""

    tensorboard_every: int = option(
        10, "Least steps between two points of a curve in TensorBoard; 0 writes none.", Range(0)
    )
    console_seconds: float = option(
        10.0, "Least seconds between two lines of progress where there is no terminal.", Range(0)
    )


class RunLogger:
    """Writes what a run reports into `workdir`; also a context manager.

    Failing to write never stops a run: the failure is reported once per kind of file, and writing is tried again later.
    """

    def __init__(
        self,
        workdir: str | Path,
        config: LogConfig,
        resume_step: int | None,
        attempt: int,
        total_steps: int,
        console: Console | None = None,
        run_config: Mapping[str, Any] | None = None,
    ):
        """Continues the files of `workdir`.

        Args:
          workdir: made where it is missing.
          config: what is shown.
          resume_step: the step of the checkpoint that the run goes on from: lines of later steps are removed, so that
            each step is there once. None for a start from scratch, which removes all lines.
          attempt: written into every line of metrics; lines of earlier attempts stay.
          total_steps: the step at which the run ends.
          console: shows the lines; the standard output by default.
          run_config: the flat config of the run, shown in TensorBoard.

        Raises:
          UserError: `workdir` cannot be made.
        """
        workdir, last_step = Path(workdir), -1 if resume_step is None else resume_step
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the workdir {workdir} cannot be made: {error.strerror}") from error
        self._failed: set[str] = set()
        self._metrics = MetricsFile(workdir / METRICS, last_step, attempt, self.notice)
        self._measurements = MeasurementFiles(workdir, last_step, self.notice)
        self._console = RunConsole(total_steps, max(last_step, 0), config.console_seconds, console)
        self._dashboard: Dashboard | None = None
        if config.tensorboard_every:
            spikes = 0
            with self._surviving(METRICS):
                spikes = count_spikes(workdir / METRICS, last_step, attempt)
            self._dashboard = Dashboard(workdir, last_step, config.tensorboard_every, total_steps, spikes)
            if run_config:
                with self._surviving(EVENTS):
                    self._dashboard.start(max(last_step, 0), run_config)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def train(self, step: int, scalars: Mapping[str, float], arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Takes a step's metrics.

        Args:
          step: updates done so far.
          scalars: by full name, `train/loss`.
          arrays: vectors over layers, `[layers]`, by full name, `stability/update_ratio/down_proj`; `x_histogram/role`
            and `x_histogram_edges/role` are counts and where they are.
        """
        arrays = arrays or {}
        with self._surviving("progress"):
            self._console.train(step, scalars)  # first: the first heat map, which imports matplotlib, takes a second
        with self._surviving(METRICS):
            self._metrics.write(step, scalars)
        with self._surviving("measurements"):
            self._measurements.add(step, arrays)
        if self._dashboard:
            with self._surviving(EVENTS):
                self._dashboard.train(step, scalars, arrays)

    def eval(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the results of an evaluation, `eval/<set>/perplexity`; all of them are written and shown."""
        with self._surviving(METRICS):
            self._metrics.write(step, scalars)
        if self._dashboard:
            with self._surviving(EVENTS):
                self._dashboard.eval(step, scalars)
                self._dashboard.flush()  # a run that is killed now doesn't evaluate this step again
        self.notice(f"step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in scalars.items()))

    def text(self, step: int, name: str, text: str) -> None:
        """Takes a text, such as a generated sample, for TensorBoard and the console."""
        if self._dashboard:
            with self._surviving(EVENTS):
                self._dashboard.text(step, name, text)
        self.notice(f"step {step}  {name}:\n{_printable(text)}")

    def complete(self) -> None:
        """Marks the run as complete; called after everything of its last step was taken."""
        if self._dashboard:
            with self._surviving(EVENTS):
                self._dashboard.complete()

    def notice(self, line: str) -> None:
        """Shows a line to the person who watches."""
        with self._surviving("progress"):
            self._console.line(line)

    def flush(self) -> None:
        """Brings everything to its files.

        The caller does this before it saves the checkpoint of a step, and after all metrics of that step were taken:
        then a run that resumes there misses nothing and repeats nothing.
        """
        with self._surviving(METRICS):
            self._metrics.sync()
        with self._surviving("measurements"):
            self._measurements.flush()
        if self._dashboard:
            with self._surviving(EVENTS):
                self._dashboard.flush()

    def close(self) -> None:
        """Flushes, says what could not be written, and gives the terminal back."""
        self.flush()
        if self._dashboard:
            with self._surviving(EVENTS):
                self._dashboard.close()
        for what, pending in ((METRICS, self._metrics.pending), ("measurements", self._measurements.pending)):
            if pending:
                self.notice(f"{pending:,} lines of {what} could not be written and are lost")
        with self._surviving("progress"):
            self._console.close()

    @contextlib.contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Reports what goes wrong with `what`, and lets the run go on."""
        try:
            yield
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                self.notice(f"{what} could not be written ({error}); training goes on, later writes are tried again")


class SilentLogger(RunLogger):
    """Takes what a run reports and writes nothing: for the processes of a run that leave it to one of them."""

    def __init__(self) -> None:
        """Opens no file."""

    def train(self, step: int, scalars: Mapping[str, float], arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Takes a step's metrics."""

    def eval(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the results of an evaluation."""

    def text(self, step: int, name: str, text: str) -> None:
        """Takes a text."""

    def complete(self) -> None:
        """Takes that the run is complete."""

    def notice(self, line: str) -> None:
        """Takes a line."""

    def flush(self) -> None:
        """Has nothing to bring to files."""

    def close(self) -> None:
        """Has nothing to close."""


def _printable(text: str) -> str:
    """`text` without control characters, which a terminal would obey; a model may generate any."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
