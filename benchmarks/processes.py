"""What a run costs when it is split: python benchmarks/processes.py > docs/results/scale/processes.jsonl

A model of 1.7M parameters (configs/quickstart.py with two blocks of twice the width) and one global batch, split by
FSDP over 1, 2, 4 and 8 virtual devices, and 4 of these over 1, 2 and 4 processes on loopback. Prints one JSON object
per line:

- `sends`: bytes that a device sends in a step, by kind, of the program compiled for so many devices, and by formula.
- `run`: one run by main.py of 11 steps, started once more from its checkpoint of step 10. Of each process: resident
  bytes after five steps, seconds and CPU seconds up to its first step, those of a save and of a restore; and bytes of
  the checkpoint that each process wrote. In `round` 0, all that is cached is made: programs, and tokenised text. In the
  others those on four devices take turns.

With --toy the model is tiny and one run is split over two processes. The figures are in docs/scale.md.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.virtual import environment, resident

ROOT = Path(__file__).parents[1]

DEVICES = (1, 2, 4, 8)
RUNS = ((1, 1), (1, 2), (1, 8), (1, 4), (2, 4), (4, 4))  # processes, and devices of all together
TIMED = RUNS[3:]
ROUNDS = 3
STEPS, EVERY = 11, 5
SIZES = {
    **{"model.width": 256, "model.layers": 2, "train.steps": STEPS, "optimizer.warmup": 1, "mesh.fsdp": -1},
    **{"checkpoint.every": EVERY, "eval.every": 0},
}
TOY = {"model.layers": 1, "model.width": 16, "model.max_length": 32, "data.length": 32, "train.loss_chunk": 32}


def started(mode: str, arguments: list[str], devices: int, cache: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, mode, *arguments]
    programs = {"JAX_COMPILATION_CACHE_DIR": f"{cache}/programs", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(command, cwd=ROOT, env=environment(devices) | programs, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> Any:
    """The JSON of a process's last line."""
    lines = process.communicate()[0].splitlines()
    if process.returncode:
        raise SystemExit(f"a process has ended with {process.returncode}")
    return json.loads(lines[-1])


def sends(devices: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """In a process of so many devices."""
    from configs.quickstart import get_config
    from jaxstab.scale.chips import read_slice
    from jaxstab.table import count
    from jaxstab.train import estimate, plan
    from jaxstab.train.config import resolve

    values = get_config()
    values.update_from_flattened_dict({**sizes, "model.vocabulary": 257})
    slice_ = read_slice(f"h100:{devices}")  # a chip's row is needed, and nothing of it is used
    config = plan.on_mesh_of(resolve(values), slice_)
    planned = plan.plan(config, slice_, plan.virtual_devices(devices), "cpu")
    table = plan.build(config).setup.table
    by_formula = estimate.sent(config, {**vars(config.mesh)}, table)
    compiled = {kind: total["sent"] for kind, total in planned.sent.items()}
    return {"of": "sends", "devices": devices, "parameters": count(table), "compiled": compiled, "formula": by_formula}


def observed(start: float, arguments: list[str]) -> dict[str, Any]:
    """One process of a run, by main.py: what its parts take.

    Args:
      start: when it was started, in seconds since the epoch.
      arguments: of main.py.
    """
    import main
    from jaxstab.train import loop
    from jaxstab.train.checkpoint import Checkpoints

    measured: dict[str, Any] = {}

    def once(name: str, value: Any) -> None:
        measured.setdefault(name, value)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*positional: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*positional, **named)
            finally:
                measured[name] = time.perf_counter() - begin

        return call

    def unpack(*packed: Any, whole: Callable[..., Any] = loop.unpack) -> Any:
        fetched = whole(*packed)
        once("first_step_s", time.time() - start)
        once("first_step_cpu_s", time.process_time())
        return fetched

    def save(self: Checkpoints, step: int, *rest: Any, whole: Any = Checkpoints.save, **named: Any) -> bool:
        once("resident", resident())
        if step != 2 * EVERY:  # the first compiles, and the last may follow at once
            return whole(self, step, *rest, **named)
        return timed("save_s", lambda: (whole(self, step, *rest, **named), self.wait())[0])()

    restore = timed("restore_s", Checkpoints.restore_latest)
    with (
        mock.patch.object(loop, "unpack", unpack),
        mock.patch.object(Checkpoints, "save", save),
        mock.patch.object(Checkpoints, "restore_latest", restore),
    ):
        code = main.main(["main.py", *arguments])
    if code:
        raise SystemExit(code)
    return {name: round(value, 3) for name, value in measured.items()}


def together(processes: int, devices: int, options: list[str], cache: str) -> list[dict[str, Any]]:
    """What each process of a run has observed."""
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    all_of_them = []
    for number in range(processes):
        where = {"coordinator": address, "processes": processes, "process": number} if processes > 1 else {}
        place = [f"--config.hosts.{key}={value}" for key, value in where.items()]
        arguments = [str(time.time()), *options, *place]
        all_of_them.append(started("run", arguments, devices // processes, cache))
    return [said(process) for process in all_of_them]


def written(checkpoint: Path) -> dict[str, int]:
    """Bytes of the arrays in a checkpoint, by the process that wrote them, and of all else."""
    sizes: dict[str, int] = {"else": 0}
    for path in (path for path in checkpoint.rglob("*") if path.is_file()):
        owner = next((part for part in path.parts if part.startswith("ocdbt.process_")), "else")
        sizes[owner] = sizes.get(owner, 0) + path.stat().st_size
    return sizes


def run(processes: int, devices: int, sizes: dict[str, Any], cache: str) -> dict[str, Any]:
    """A run, and the same from its checkpoint on."""
    with tempfile.TemporaryDirectory(dir=cache) as aside:
        workdir = Path(aside) / "run"
        options = ["--config=configs/quickstart.py", f"--workdir={workdir}", f"--config.data.cache_dir={cache}/data"]
        options += [f"--config.{key}={value}" for key, value in sizes.items()]
        first = together(processes, devices, options, cache)
        saved, last = (workdir / "checkpoints" / str(step) for step in (2 * EVERY, STEPS))
        row = {"of": "run", "processes": processes, "devices": devices, "written": written(saved)}
        shutil.rmtree(last)
        again = together(processes, devices, options, cache)
        names = ("resident", "first_step_s", "first_step_cpu_s", "save_s")
        row |= {name: [each[name] for each in first] for name in names}
        return row | {"restore_s": [each["restore_s"] for each in again]}


def rows(toy: bool) -> Iterator[dict[str, Any]]:
    sizes = SIZES | (TOY if toy else {})
    with tempfile.TemporaryDirectory() as cache:
        for devices in (2,) if toy else DEVICES:
            yield said(started("sends", [str(devices), json.dumps(sizes)], devices, cache))
        for number in range(1 if toy else 1 + ROUNDS):
            for split in ((2, 2),) if toy else TIMED if number else RUNS:
                yield {"round": number, **run(*split, sizes, cache)}


if __name__ == "__main__":
    mode, arguments = (sys.argv[1:] or [""])[0], sys.argv[2:]
    if mode == "sends":
        print(json.dumps(sends(int(arguments[0]), json.loads(arguments[1]))))
    elif mode == "run":
        print(json.dumps(observed(float(arguments[0]), arguments[1:])))
    else:
        for row in rows(mode == "--toy"):
            print(json.dumps(row), flush=True)
