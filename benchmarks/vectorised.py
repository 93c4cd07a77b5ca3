"""Would runs that share a program be faster as one, vectorised with vmap? And do they come to the same?

    python benchmarks/vectorised.py --config=configs/ladder.py:rung=1 --vocabulary=2048 --runs=2 --runs=8

Takes steps of a config's training in turns (benchmarks/timing.py): of one run, of one once more, which is the control,
and of several at once by the step that `compare` takes, each with rates, decay, seed and batch of its own. Prints the
time of a step of one run, alone and among others, and how far the losses and weights of the vectorised runs lie from
those of the same runs alone after `--steps` steps.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from typing import Any

import jax
import numpy as np
from timing import interleaved, ratios, step_of, warmed

from jaxstab.compare.lockstep import joint_step
from jaxstab.optimize import Hypers
from jaxstab.train.config import Config, resolve
from jaxstab.train.packed import unpack
from jaxstab.train.program import Program, build


def configured(config: str, vocabulary: int) -> Config:
    """The config of a file, `path:argument`, with a vocabulary in place of its tokenizer's."""
    path, _, argument = config.partition(":")
    spec = importlib.util.spec_from_file_location("chosen", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = module.get_config(argument)
    values.model.vocabulary = vocabulary
    return resolve(values)


class Together:
    """Several runs as one program, as `compare` runs them.

    Attributes:
      states: of each.
      inputs: batches [B, T+1] and hyper-parameters, of each.
    """

    def __init__(self, program: Program, count: int):
        self._step = joint_step(program, count)
        self.states = tuple(map(program.init, range(count)))
        self.inputs = given(program.setup.config, count)

    def step(self) -> Any:
        self.states, packed = self._step(self.states, *self.inputs)
        return jax.block_until_ready(packed)


def given(config: Config, count: int) -> tuple[tuple[np.ndarray, ...], tuple[Hypers, ...]]:
    """Batches [B, T+1] and hyper-parameters, each run's own."""
    shape = count, config.train.batch_size, config.data.length + 1
    tokens = np.random.default_rng(0).integers(0, config.model.vocabulary, shape).astype(np.int32)
    rates = config.optimizer.learning_rate * np.geomspace(0.3, 3, count)
    decays = config.optimizer.weight_decay * np.linspace(1, 2, count)
    each = zip(np.float32(rates), np.float32(decays), strict=True)
    return tuple(tokens), tuple(Hypers(rate, decay, np.float32(np.inf), np.int32(0)) for rate, decay in each)


def apart(program: Program, count: int, steps: int) -> dict[str, float]:
    """The largest relative differences between vectorised runs and the same ones alone: of a loss, and of a norm."""
    together = Together(program, count)
    losses = [[unpack(packed)[0]["train/loss"] for packed in together.step()] for _ in range(steps)]
    differences: dict[str, float] = {"loss": 0.0, "weights": 0.0}
    for run, (tokens, hypers) in enumerate(zip(*together.inputs, strict=True)):
        state = program.init(run)
        for step in range(steps):
            state, packed = program.step(state, tokens, hypers)
            loss = unpack(packed)[0]["train/loss"]
            differences["loss"] = max(differences["loss"], abs(loss / losses[step][run] - 1))
        pairs = zip(jax.tree.leaves(state.raw), jax.tree.leaves(together.states[run].raw), strict=True)
        for alone, among in pairs:
            distance = np.linalg.norm(alone - among) / max(np.linalg.norm(alone), 1e-12)
            differences["weights"] = max(differences["weights"], float(distance))
    return differences


def main() -> None:
    """Times, compares, and prints an object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--vocabulary", required=True, type=int)
    parser.add_argument("--runs", action="append", type=int, required=True, help="how many at once; several go")
    parser.add_argument("--rounds", default=10, type=int)
    parser.add_argument("--steps", default=10, type=int)
    arguments = parser.parse_args()
    config = configured(arguments.config, arguments.vocabulary)
    program = build(config)
    alone = step_of(config, program)
    steps = {f"{count} at once": warmed(Together(program, count).step) for count in arguments.runs}
    seconds = interleaved({"alone": alone, "alone, again": alone, **steps}, arguments.rounds)
    counts = dict(zip(steps, arguments.runs, strict=True))
    each = {name: list(np.array(values) / counts.get(name, 1)) for name, values in seconds.items()}
    for name, summary in ratios(each, "alone").items():
        print(json.dumps({"runs": name, "a step of one": summary}), flush=True)
    most = max(arguments.runs)
    print(json.dumps({"runs": f"{most} at once", "steps": arguments.steps, **apart(program, most, arguments.steps)}))


if __name__ == "__main__":
    main()
