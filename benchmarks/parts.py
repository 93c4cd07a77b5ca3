"""Where a step's time goes, by part: python benchmarks/parts.py [--method=wesar] [--remat=none] > parts.json

One core is enough, and makes the parts add up: `taskset -c 0`. Times are those that XLA's CPU backend reports for its
operations, each counted where the operation that it ends with stands in the code (`jax.named_scope`, Flax's modules).
docs/results/speed.md has the figures.
"""

from __future__ import annotations

import argparse
import collections
import glob
import gzip
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
from timing import SHAPE, compiled, configured, random_tokens

from jaxstab.train.program import build
from jaxstab.train.step_io import hypers

# The first pattern that an operation's name has; loops and calls are those around others, whose time they include.
PARTS = {
    "linear layers, products": r"_proj.*dot_general",
    "linear layers, the rest": r"_proj",
    "attention": r"self_attn",
    "loss, products": r"(loss|jvp\(\)/while).*dot_general",
    "loss, the rest": r"loss|jvp\(\)/while",
    "norms": r"norm\b|_layernorm",
    "activations": r"/mlp/",
    "measurements": r"measurements",
    "optimizer": r"optimizer",
    "reparameterization": r"reparam",
    "embedding and the loop over layers": r"Transformer",
    "gradient norms, guard, selection, copies": r"",
}


def operations(text: str) -> dict[str, str]:
    """{operation: where it stands in the code}, of a compiled program's text."""
    pattern = r'^\s*(?:ROOT )?%([\w.\-]+) = (?:(?!op_name)[^\n])*(?:op_name="([^"]*)")?'
    return dict(re.findall(pattern, text, re.MULTILINE))


def part_of(name: str) -> str:
    return next(part for part, pattern in PARTS.items() if re.search(pattern, name))


def events(folder: str) -> list[dict[str, Any]]:
    """What a trace says of operations: name and microseconds."""
    (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
    with gzip.open(path) as file:
        traced = json.load(file)["traceEvents"]
    return [event for event in traced if event.get("ph") == "X" and "hlo_op" in event.get("args", {})]


def profile(sizes: dict[str, int], steps: int, **changes: Any) -> dict[str, float]:
    """Milliseconds a step by part, of a training step after a first one."""
    config = configured(**sizes, **changes)
    program = build(config)
    values, state = hypers(program), program.init(0)
    tokens = jax.numpy.asarray(random_tokens(config.model.vocabulary, config.train.batch_size, config.data.length))
    step = compiled(program)
    state, _ = jax.block_until_ready(step(state, tokens, values))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                state, measured = step(state, tokens, values)
            jax.block_until_ready((state, measured))
        traced = events(folder)
    names, parts = operations(step.as_text()), collections.Counter[str]()
    for event in traced:
        operation = event["args"]["hlo_op"]
        if not operation.startswith(("while", "call", "conditional")):
            parts[part_of(names.get(operation, ""))] += event["dur"] / 1e3 / steps
    return {part: round(parts[part], 2) for part in PARTS if parts[part]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--method", default="identity")
    parser.add_argument("--measure", default="light")
    parser.add_argument("--remat", default="full")
    parser.add_argument("--loss_chunk", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    options = vars(parser.parse_args())
    parts = profile(SHAPE, **options)
    print(json.dumps({**options, "ms": parts, "sum": round(sum(parts.values()), 1)}, indent=1))


if __name__ == "__main__":
    main()
