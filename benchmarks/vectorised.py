"""Would runs that share a program be faster as one, vectorised with vmap? And do they come to the same?

    python benchmarks/vectorised.py --config=configs/ladder.py:rung=1 --vocabulary=2048 --runs=2 --runs=8

Takes steps of a config's training, of one run and of several at once with rates, decay, seeds and batches of their own,
in turns (benchmarks/timing.py). Prints the time of a step of one run, alone and among others, and how far the losses
and weights of the vectorised runs lie from those of the same runs alone after `--steps` steps.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
from typing import Any

import jax
import numpy as np
from timing import interleaved, ratios

from jaxstab.optimize import Hypers
from jaxstab.train.config import Config, resolve
from jaxstab.train.packed import unpack
from jaxstab.train.program import build, packed_step
from jaxstab.train.setup import Setup
from jaxstab.train.state import init_state


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
    """Several runs as one program: a leading axis on the states, batches and hyper-parameters.

    Attributes:
      states: a tree whose leaves lead with the runs.
    """

    def __init__(self, setup: Setup, count: int):
        config = setup.config
        self._step = jax.jit(jax.vmap(functools.partial(packed_step, setup)), donate_argnums=0)
        self.states = jax.jit(jax.vmap(functools.partial(init_state, setup)))(np.arange(count))
        self.inputs = given(config, count)

    def step(self) -> Any:
        self.states, packed = self._step(self.states, *self.inputs)
        return jax.block_until_ready(packed)


def given(config: Config, count: int) -> tuple[np.ndarray, Hypers]:
    """Batches [runs, B, T+1] and hyper-parameters [runs], each run's own."""
    shape = count, config.train.batch_size, config.data.length + 1
    tokens = np.random.default_rng(0).integers(0, config.model.vocabulary, shape).astype(np.int32)
    rates = config.optimizer.learning_rate * np.geomspace(0.3, 3, count)
    decays = config.optimizer.weight_decay * np.linspace(1, 2, count)
    none, zero = np.full(count, np.inf, np.float32), np.zeros(count, np.int32)
    return tokens, Hypers(rates.astype(np.float32), decays.astype(np.float32), none, zero)


def apart(setup: Setup, count: int, steps: int) -> dict[str, float]:
    """The largest relative differences between vectorised runs and the same ones alone: of a loss, and of a norm."""
    together, program = Together(setup, count), build(setup.config)
    losses = np.array([_losses(together.step(), count) for _ in range(steps)])
    tokens, hypers = together.inputs
    differences: dict[str, float] = {"loss": 0.0, "weights": 0.0}
    for run in range(count):
        state, own = program.init(run), Hypers(*(each[run] for each in hypers))
        for step in range(steps):
            state, packed = program.step(state, tokens[run], own)
            loss = unpack(packed)[0]["train/loss"]
            differences["loss"] = max(differences["loss"], abs(loss / losses[step, run] - 1))
        pairs = zip(jax.tree.leaves(state.raw), jax.tree.leaves(together.states.raw), strict=True)
        for alone, among in pairs:
            distance = np.linalg.norm(alone - among[run]) / max(np.linalg.norm(alone), 1e-12)
            differences["weights"] = max(differences["weights"], float(distance))
    return differences


def _losses(packed: Any, count: int) -> list[float]:
    return [unpack(jax.tree.map(lambda x, run=run: x[run], packed))[0]["train/loss"] for run in range(count)]


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
    setup = build(config).setup
    groups = {str(count): Together(setup, count) for count in dict.fromkeys([1, *arguments.runs])}
    for group in groups.values():
        group.step()
    seconds = interleaved({name: group.step for name, group in groups.items()}, arguments.rounds)
    each = {name: list(np.array(values) / int(name)) for name, values in seconds.items()}
    for name, summary in ratios(each, "1").items():
        print(json.dumps({"runs at once": int(name), "a step of one": summary}), flush=True)
    most = max(arguments.runs)
    print(json.dumps({"runs at once": most, "steps": arguments.steps, **apart(setup, most, arguments.steps)}))


if __name__ == "__main__":
    main()
