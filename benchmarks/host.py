"""What a run costs beside the device's program: python benchmarks/host.py > docs/results/speed/host.json

- `cpu_ms_a_step`: the CPU time of a run's Python threads per step, by part, at 24 layers of a tiny width. The device's
  program runs in threads of its own and isn't counted.
- `shares`: the part of a run's time that the loop spends waiting for data, reporting, and saving, at about the size of
  configs/proxy.py. Most of it passes while the device is at work, so this is more than what a step loses.
- `first_step_s`: seconds from the start of `main.py` to its first step, in processes of their own; programs are cached
  and the text is tokenised.

With --toy everything is tiny, and done in seconds. Figures are in docs/results/speed.md.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
from ml_collections import ConfigDict
from rich.console import Console

from jaxstab.logging import RunLogger
from jaxstab.train import loop
from jaxstab.train.checkpoint import Checkpoints
from jaxstab.train.clock import StepClock
from jaxstab.train.config import resolve
from jaxstab.train.incidents import Incidents
from jaxstab.train.loop import Trainer
from jaxstab.train.step_io import StepInputs

ROOT = Path(__file__).parents[1]
COMPILING = 3  # steps at the start that compile and open files
Times = dict[str, list[tuple[float, float]]]  # by part: seconds on the wall and of the CPU, per call


def timed(times: Times, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with the time of each call noted."""

    @functools.wraps(function)
    def measured(*arguments: Any, **options: Any) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            times[name].append((time.perf_counter() - wall, time.thread_time() - cpu))

    return measured


@contextlib.contextmanager
def stopwatch() -> Iterator[Times]:
    """Within it, the parts of a run note their times."""
    times: Times = defaultdict(list)
    ahead, unpack = StepInputs.ahead, loop.unpack

    def waited_for(inputs: StepInputs, first: int, last: int) -> Iterator[Any]:
        batches = ahead(inputs, first, last)
        next_batch = timed(times, "wait for data", lambda: next(batches))
        for _ in range(first, last + 1):
            yield next_batch()

    parts = {
        "hypers": (StepInputs, "hypers"),
        "batch": (StepInputs, "tokens"),
        "dispatch": (Trainer, "_dispatch"),
        "pack": (loop, "pack"),
        "report": (Trainer, "_report"),
        "log": (RunLogger, "train"),
        "flush": (RunLogger, "flush"),
        "remember": (Incidents, "remember"),
        "clock": (StepClock, "_wait"),
        "save": (Checkpoints, "save"),
        "wait for checkpoints": (Checkpoints, "wait"),
        "run": (Trainer, "advance"),
    }
    with contextlib.ExitStack() as patches:
        for name, (owner, attribute) in parts.items():
            function = timed(times, name, getattr(owner, attribute))
            patches.enter_context(mock.patch.object(owner, attribute, function))
        fetch = timed(times, "unpack", unpack)  # without the wait for the step
        ready = lambda *packed: fetch(*jax.block_until_ready(packed))  # noqa: E731
        patches.enter_context(mock.patch.object(loop, "unpack", timed(times, "wait for the step", ready)))
        patches.enter_context(mock.patch.object(StepInputs, "ahead", waited_for))
        yield times


def run(values: ConfigDict) -> Times:
    """Trains a config, and returns the times of its parts."""
    with tempfile.TemporaryDirectory() as workdir, stopwatch() as times:
        loop.train(resolve(values), Path(workdir) / "run", Console(quiet=True))
    return times
