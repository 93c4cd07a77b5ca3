"""What `main.py plan` says of a step beside what the step really takes, on virtual devices of this machine's CPU.

    python benchmarks/planned.py > docs/results/plan/planned.jsonl

Every case is a process of its own: it plans the step, takes it, and prints one JSON object. Bytes of one device:

- `state`: of the plan, by formula, and of the arrays that a step is given, its batch among them but in the formula.
- `temporaries`: of the plan, by formula, and how far the process's resident memory rises above what it is before a step
  while it takes one, the least and the most of ROUNDS steps, divided among the devices.

`flops` are the plan's, `cpu_seconds` the CPU time of the whole process in each of the steps: other processes may run
meanwhile. Linux alone tells the peak (/proc/self/clear_refs). With --toy the model is tiny, and one case is done in
seconds. The figures are in docs/results/plan.md.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
from timing import configured, random_tokens

from benchmarks.virtual import environment, resident
from jaxstab.scale import MeshConfig, batch_sharding
from jaxstab.scale.chips import read_slice
from jaxstab.table import count
from jaxstab.train import estimate, plan
from jaxstab.train.config import Config
from jaxstab.train.program import build
from jaxstab.train.step_io import hypers

SIZES = {
    "toy": dict(width=32, layers=1, heads=2, vocabulary=64, batch=8, length=32),
    "small": dict(width=128, layers=4, heads=4, vocabulary=2048, batch=16, length=256),
    "large": dict(width=320, layers=6, heads=5, vocabulary=4096, batch=16, length=256),
}
# Size, devices, method, remat.
CASES = [
    ("small", 1, "identity", "none"),
    ("small", 1, "wesar", "full"),
    ("small", 2, "wesar", "none"),
    ("small", 4, "wesar", "full"),
    ("small", 8, "identity", "full"),
    ("large", 1, "wesar", "none"),
    ("large", 1, "wesar", "full"),
    ("large", 8, "wesar", "full"),
]
ROUNDS = 3


def peak_of(step: Callable[[], None]) -> int:
    """How far resident memory rises during a call, in bytes."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that was freed and not given back would be used without a trace
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    step()
    return resident("VmHWM") - before


def held(tree: Any) -> int:
    """Bytes of the arrays of a tree on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def sums(memory: dict[str, float], state: tuple[str, ...]) -> dict[str, int]:
    """A plan's memory in two parts, without the program's own."""
    parts = {name: part for name, part in memory.items() if name != "program"}
    whole = sum(part for name, part in parts.items() if name in state)
    return {"state": round(whole), "temporaries": round(sum(parts.values()) - whole)}


def case(size: str, devices: int, method: str, remat: str) -> dict[str, Any]:
    config: Config = configured(**SIZES[size], method=method, remat=remat)
    config = dataclasses.replace(config, mesh=MeshConfig(fsdp=devices))
    slice_ = read_slice(f"h100:{devices}")  # a chip's row is needed, and nothing of it is used
    planned = plan.plan(config, slice_, plan.virtual_devices(devices), "cpu")
    program = build(config)
    by_formula = estimate.memory(config, program.setup.mesh.shape, estimate.footprint(program))
    values, state = hypers(program)._replace(position=jax.numpy.int32(0)), program.init(0)
    tokens = random_tokens(config.model.vocabulary, config.train.batch_size, config.data.length)
    tokens = jax.device_put(tokens, batch_sharding(program.setup.mesh))
    seconds = []

    def step() -> None:
        nonlocal state
        start = time.process_time()
        state, measured = program.step(state, tokens, values)
        jax.block_until_ready((state, measured))
        seconds.append(round(time.process_time() - start, 3))

    step()  # compiles
    peaks = [peak_of(step) // devices for _ in range(ROUNDS)]
    return {
        **{"size": size, "parameters": count(program.setup.stored_table), "devices": devices},
        **{"method": method, "remat": remat},
        "planned": sums(planned.memory, ("parameters", "optimizer", "other state")),
        "formula": sums(by_formula, ("parameters", "optimizer")),
        "measured": {"state": held((state, tokens, values)), "temporaries": [min(peaks), max(peaks)]},
        "flops": planned.flops["executed"],
        "cpu_seconds": seconds[1:],
    }


def main(cases: list[tuple[str, int, str, str]]) -> None:
    for each in cases:
        # What is freed goes back at once, so that a step can't use again what one before it has left.
        own = environment(each[1]) | {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
        subprocess.run([sys.executable, __file__, *map(str, each)], env=own, check=True)


if __name__ == "__main__":
    if len(sys.argv) == 5:
        print(json.dumps(case(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])), flush=True)
    else:
        main([("toy", 2, "wesar", "full")] if sys.argv[1:] == ["--toy"] else CASES)
