"""What a run costs beside the device's program: python benchmarks/host.py > docs/results/speed/host.json

- `cpu_ms_a_step`: the CPU time of a run's Python threads per step, by part, at 24 layers of a tiny width. The device's
  program runs in threads of its own and isn't counted; heat maps, drawn once a minute at most, aren't either.
- `shares`: the parts of a run's time that the loop spends waiting for data, reporting steps, and saving, at about the
  size of configs/proxy.py. The device is at work meanwhile, so that this is the most that a run can lose.
- `first_step_s`: seconds from the start of `main.py` to its first step, in processes of their own, with cached programs
  and text that is tokenised.

With --toy everything is tiny, and done in seconds. The figures are in docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
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

from configs import proxy, quickstart
from jaxstab.data.parallel import cores
from jaxstab.logging import RunLogger
from jaxstab.train import loop
from jaxstab.train.checkpoint import Checkpoints
from jaxstab.train.clock import StepClock
from jaxstab.train.config import resolve
from jaxstab.train.incidents import Incidents
from jaxstab.train.loop import Trainer
from jaxstab.train.step_io import StepInputs

ROOT = Path(__file__).parents[1]
FIRST = 3  # steps, which compile, open files and draw a heat map
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
        next_batch = timed(times, "data", lambda: next(batches))
        for _ in range(first, last + 1):
            yield next_batch()

    parts = {
        "hypers": (StepInputs, "hypers"),
        "batch": (StepInputs, "rows"),
        "dispatch": (Trainer, "_dispatch"),
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


def run(values: ConfigDict, **changes: Any) -> Times:
    """Trains a config on Python's standard library, and returns the times of its parts."""
    values.update_from_flattened_dict({"eval.every": 0, "data.source": "stdlib", "data.tokenizer": "bytes", **changes})
    with tempfile.TemporaryDirectory() as workdir, stopwatch() as times:
        loop.train(resolve(values), Path(workdir) / "run", Console(quiet=True))
    return times


def cpu_ms_a_step(layers: int, steps: int) -> dict[str, float]:
    """CPU milliseconds of a step's host work, by part and in all."""
    width = {"model.width": 32, "model.heads": 2, "model.max_length": 32, "train.loss_chunk": 32, "data.length": 32}
    sizes = {"model.layers": layers, "train.batch_size": 4, "train.steps": steps, "stability.incidents": 0}
    times = run(quickstart.get_config(), **width, **sizes)
    means = {name: 1e3 * statistics.mean(cpu for _, cpu in calls[FIRST:-1] or calls) for name, calls in times.items()}
    whole = {"dispatch": ("hypers",), "report": ("unpack", "log", "remember"), "batch": (), "clock": (), "data": ()}
    parts = {}
    for name, within in whole.items():
        parts |= {part: means[part] for part in within}
        parts[name if not within else f"rest of {name}"] = means[name] - sum(means[part] for part in within)
    return {name: round(ms, 3) for name, ms in parts.items()} | {"total": round(sum(parts.values()), 3)}


def shares(steps: int) -> dict[str, float]:
    """Parts of the time of a run, without what compiles: its first steps and its first save."""
    every = steps // 3
    changes = {"train.steps": steps, "checkpoint.every": every}
    times = {
        name: [wall for wall, _ in calls] for name, calls in run(proxy.get_config("method=wesar"), **changes).items()
    }
    compiling = times["save"][0] + sum(sum(times[name][:FIRST]) for name in ("data", "dispatch", "report"))
    seconds = times["run"][0] - compiling
    spent = {
        "data": sum(times["data"][FIRST:]),
        "reports": sum(sum(times[name][FIRST:]) for name in ("hypers", "unpack", "log", "remember")),
        "checkpoints": sum(times["flush"]) + sum(times["save"][1:]) + sum(times["wait for checkpoints"]),
    }
    return {"seconds": round(seconds, 1), "steps": steps} | {name: round(s / seconds, 5) for name, s in spent.items()}


def first_step_s(processes: int, *overrides: str) -> list[float]:
    """Seconds to the first step of quickstart.py, each in a new process; one before them fills the caches."""
    seconds = []
    with tempfile.TemporaryDirectory() as aside:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{aside}/programs"}
        for number in range(processes + 1):
            options = ["--config=configs/quickstart.py", f"--workdir={aside}/{number}", *overrides]
            start = time.perf_counter()
            command = [sys.executable, "main.py", *options]
            with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
                next(line for line in process.stdout or () if line.startswith("step 1/"))
                seconds.append(round(time.perf_counter() - start, 2))
                process.kill()
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true")
    if parser.parse_args().toy:
        tiny = "--config.model.layers=1", "--config.model.width=16"
        print(json.dumps({"cpu_ms_a_step": cpu_ms_a_step(2, 60), "first_step_s": first_step_s(1, *tiny)}))
        return
    measured = {"cpu_ms_a_step": cpu_ms_a_step(24, 300), "shares": shares(300), "first_step_s": first_step_s(10)}
    print(json.dumps(measured | {"device": jax.devices()[0].device_kind, "cores": cores()}, indent=1))


if __name__ == "__main__":
    main()
