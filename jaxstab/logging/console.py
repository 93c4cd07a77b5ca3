"""The run on the console: a progress bar on a terminal, and lines now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
SECONDS = 30.0  # between two lines of a loop, off a terminal


def say(console: Console, text: str) -> None:
    """Prints a line as it is: nothing in it is markup, and it isn't broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def shown(console: Console, title: str) -> Callable[[Sequence[Item]], Iterator[Item]]:
    """Shows how far a loop is and how long it will take: a bar on a terminal, lines now and then elsewhere."""

    def bar(items: Sequence[Item]) -> Iterator[Item]:
        columns = (TextColumn(title, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            yield from progress.track(items)

    def lines(items: Sequence[Item]) -> Iterator[Item]:
        start = told = time.monotonic()
        for number, item in enumerate(items):
            yield item
            now = time.monotonic()
            if now - told >= SECONDS:
                told, left = now, (now - start) / (number + 1) * (len(items) - number - 1)
                say(console, f"{title}: {number + 1}/{len(items)}, {_clock(left)} left")

    return bar if console.is_terminal else lines


class RunConsole:
    """Shows the loss, tokens per second and the time left of a run of `total_steps` steps."""

    def __init__(self, total_steps: int, first_step: int, seconds: float, console: Console | None = None):
        """Starts at `first_step`; off a terminal, lines come at least `seconds` apart."""
        self._console = console or Console()
        self._total = total_steps
        self._seconds = seconds
        self._start: tuple[int, float] | None = None
        self._next_line = 0.0
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = _bar(self._console)
            self._task = self._bar.add_task("train", total=total_steps, completed=first_step, progress="")
            self._bar.start()

    def train(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the step just done."""
        self._start = self._start or (step, time.monotonic())
        progress = _loss_and_speed(scalars) + self._time_left(step, *self._start)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, progress=progress)
        elif time.monotonic() >= self._next_line or step >= self._total:
            self._next_line = time.monotonic() + self._seconds
            self.line(f"step {step}/{self._total}{progress}")

    def _time_left(self, step: int, first: int, began: float) -> str:
        """The time left at the mean pace since the first step was done.

        Compiling comes before that and doesn't count; evaluations and saves do, since there are more of them to come.
        """
        if step <= first or step >= self._total:
            return ""
        seconds = (self._total - step) * (time.monotonic() - began) / (step - first)
        return f"  {_clock(seconds)} left"

    def line(self, text: str) -> None:
        """Prints one thing to read, above the bar where there is one."""
        say(self._console, text)

    def close(self) -> None:
        """Leaves the bar as it is and gives the terminal back."""
        if self._bar is not None:
            self._bar.stop()


def _bar(console: Console) -> Progress:
    progress = TextColumn("{task.fields[progress]}", markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), progress)
    return Progress(*columns, console=console, refresh_per_second=4)  # drawing them takes a millisecond of a core


def _loss_and_speed(scalars: Mapping[str, float]) -> str:
    loss, speed = scalars.get("train/loss"), scalars.get("train/tokens_per_second")
    parts = ([f"loss {loss:.4f}"] if loss is not None else []) + ([f"{speed:,.0f} tokens/s"] if speed else [])
    return "".join("  " + part for part in parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
