"""What measurements cost.

    python benchmarks/measurements.py [proxy|130m|rung1] [rounds] > costs.json
    python benchmarks/measurements.py rung1 5 full > costs.json

The first times light measurements, the second full ones and each instrument beside them.

Times whole steps, with fetching, writing and TensorBoard, with `stability.measure=off` and `light` in turns, and `off`
once more as the control, whose difference from `off` is noise. A turn is one step, so that a machine's drift falls
on all alike, and each round takes every variant in another order. The vectors over layers are written as those of a
model of 40 layers. On an idle machine; prints the ratios of each round, of seconds and of the process's CPU seconds,
which other programs disturb less. A few percent of a step are hard to see so: `by itself` is what the
measurements take beyond the norms that every step takes, in a program without the step, and what the host takes longer.

With `full`, a turn is a step, the same once more as the control, the full measurements without instruments, or an
instrument by itself, with the gradient and the update that it asks for, each in a program of its own.
"""

import dataclasses
import functools
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import optax
from rich.console import Console

from benchmarks.timing import interval
from jaxstab import scale, stability
from jaxstab.logging import LogConfig, RunLogger
from jaxstab.model.config import ModelConfig
from jaxstab.reparam import ReparamConfig
from jaxstab.stability.config import INSTRUMENTS
from jaxstab.train import instruments
from jaxstab.train.config import Config
from jaxstab.train.packed import unpack
from jaxstab.train.program import Program, build
from jaxstab.train.state import TrainState
from jaxstab.train.step_io import hypers

LAYERS = 40  # the length of the vectors that are written
VARIANTS = {"off": "off", "light": "light", "control": "off"}
CLOCKS = ("seconds", "CPU seconds")


def config_of(shape: str, measure: str) -> Config:
    """The proxy of configs/proxy.py, the paper's 130M model, or rung 1 of configs/ladder.py, under WeSaR."""
    base = Config(reparam=ReparamConfig(method="wesar"))
    if shape == "130m":
        model, batch, length = dataclasses.replace(base.model, remat="full"), 1, 2048
    elif shape == "rung1":
        model = ModelConfig(width=64, layers=12, heads=2, vocabulary=2048, max_length=256, remat="none")
        batch, length = 8, 256
    else:
        model = ModelConfig(width=192, layers=16, heads=3, vocabulary=8192, max_length=256, remat="none")
        batch, length = 8, 256
    return dataclasses.replace(
        base,
        model=model,
        data=dataclasses.replace(base.data, length=length),
        train=dataclasses.replace(base.train, batch_size=batch),
        stability=dataclasses.replace(base.stability, measure=measure),
    )


def tokens_of(config: Config) -> jax.Array:
    """A random batch."""
    shape = config.train.batch_size, config.data.length + 1
    return jax.numpy.asarray(np.random.default_rng(0).integers(0, config.model.vocabulary, shape), jax.numpy.int32)


class Runner:
    """A run of one variant, without its data."""

    def __init__(self, shape: str, measure: str, workdir: Path):
        config = config_of(shape, measure)
        self.program = build(config)
        self.hypers = hypers(self.program)
        self.state = self.program.init(0)
        self.tokens = tokens_of(config)
        self.logger = RunLogger(workdir, LogConfig(), None, 0, 10**6, Console(quiet=True))
        self.step = 0
        for _ in range(2):
            self.take()

    def take(self) -> tuple[float, float, float]:
        """Seconds of a step with its metrics written, by the clock and of all processors; and those of the writing."""
        self.step += 1
        start = time.perf_counter(), time.process_time()
        self.state, metrics = self.program.step(self.state, self.tokens, self.hypers)
        jax.block_until_ready(metrics)
        stepped = time.perf_counter()
        scalars, arrays = unpack(metrics)
        self.logger.train(self.step, scalars, {name: np.resize(values, LAYERS) for name, values in arrays.items()})
        end = time.perf_counter()
        return end - start[0], time.process_time() - start[1], end - stepped


def by_itself(program: Program, state: TrainState, rounds: int = 15) -> float:
    """Seconds that the light measurements take beyond the norms that every step takes, without the step around them."""
    table, stored_table = program.setup.table, program.setup.stored_table

    @functools.partial(jax.jit, static_argnums=0)
    def measure(light: bool, raw: Any, raw_gradients: Any, gradients: Any, clipped: Any, updates: Any, weights: Any):
        stored_trees = (raw_gradients, clipped, updates)
        norms = [stability.global_norm(stored_table, tree) for tree in stored_trees]
        norms.append(stability.global_norm(table, gradients))
        if not light:
            return norms
        new_weights = program.setup.reparam.merge(optax.apply_updates(raw, updates), state.reparam)
        statistics = stability.step_statistics(
            table,
            stored_table,
            raw=raw,
            weights=weights,
            raw_gradients=raw_gradients,
            gradients=gradients,
            clipped_raw_gradients=clipped,
            updates=updates,
            new_weights=new_weights,
            eps=program.setup.config.optimizer.eps,
        )
        statistics |= stability.vector_statistics(stored_table, raw, raw_gradients, updates)
        return norms, statistics | stability.state_statistics(stored_table, raw, updates, state.optimizer, clipped)

    def seconds(light: bool) -> float:
        start = time.perf_counter()
        jax.block_until_ready(measure(light, *given))
        return time.perf_counter() - start

    weights = program.merge(state)
    given = state.raw, state.raw, weights, state.raw, state.raw, weights  # the time taken doesn't depend on values
    taken = [seconds(True) - seconds(False) for _ in range(rounds + 1)]
    return statistics.median(taken[1:])


def main() -> None:
    shape = sys.argv[1] if len(sys.argv) > 1 else "proxy"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    print(json.dumps(of_full(shape, rounds) if "full" in sys.argv[3:] else of_light(shape, rounds), indent=1))


def of_full(shape: str, rounds: int) -> dict[str, Any]:
    """Seconds and CPU seconds of two equal steps, of the full measurements and of every instrument, in turns.

    `steps` has the CPU seconds over those of the first step, of which the second is the control.
    """
    config = config_of(shape, "full")
    program = build(config)
    state, given, tokens = program.init(0), hypers(program), tokens_of(config)

    def by_choice(name: str) -> Callable[[], Any]:
        chosen = dataclasses.replace(config, stability=dataclasses.replace(config.stability, instruments=(name,)))
        setup = dataclasses.replace(program.setup, config=chosen)
        function = jax.jit(scale.on_mesh(setup.mesh, functools.partial(instruments.measured, setup)))
        return lambda: function(state, tokens, given)

    step = jax.jit(program.step.__wrapped__)  # that keeps the state
    turns = dict.fromkeys(("step", "control"), lambda: step(state, tokens, given))
    turns |= {"full": lambda: program.measure(state, tokens, given)}
    turns |= {name: by_choice(name) for name in INSTRUMENTS}
    for turn in turns.values():
        jax.block_until_ready(turn())
    dice = np.random.default_rng(0)
    taken = [{name: clocked(turns[name]) for name in dice.permutation(list(turns))} for _ in range(rounds)]
    return {"shape": shape, "rounds": rounds} | {
        name: {
            **{what: round(statistics.median(each[name][i] for each in taken), 3) for i, what in enumerate(CLOCKS)},
            "steps": summary([each[name][1] / each["step"][1] for each in taken]),
        }
        for name in turns
    }


def clocked(turn: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that it takes, and CPU seconds."""
    start = time.perf_counter(), time.process_time()
    jax.block_until_ready(turn())
    return time.perf_counter() - start[0], time.process_time() - start[1]


def of_light(shape: str, rounds: int) -> dict[str, Any]:
    """Ratios of steps with light measurements to those without."""
    orders = itertools.cycle(itertools.permutations(VARIANTS))
    with tempfile.TemporaryDirectory() as directory:
        runners = {name: Runner(shape, measure, Path(directory) / name) for name, measure in VARIANTS.items()}
        taken = [{name: runners[name].take() for name in next(orders)} for _ in range(rounds)]
        seconds = by_itself(runners["light"].program, runners["light"].state)
    median = {name: [statistics.median(each[name][i] for each in taken) for i in range(3)] for name in VARIANTS}
    off, written = median["off"], median["light"][2] - median["off"][2]
    costs = {"shape": shape, "rounds": rounds, "a step, off": {what: round(off[i], 4) for i, what in enumerate(CLOCKS)}}
    costs["by itself"] = {"seconds": round(seconds, 4), "fetched and written": round(written, 4)}
    costs["by itself, over a step"] = round((seconds + written) / off[0], 4)
    for clock, what in enumerate(CLOCKS):
        ratios = {name: [each[name][clock] / each["off"][clock] for each in taken] for name in ("light", "control")}
        costs[f"{what} over off"] = {name: summary(values) for name, values in ratios.items()}
    return costs


def summary(ratios: list[float]) -> dict[str, Any]:
    """The ratios and their median, with its 95% interval by resampling."""
    rounded = [round(ratio, 4) for ratio in ratios]
    return {"median": round(statistics.median(ratios), 4), "interval": interval(ratios), "all": rounded}


if __name__ == "__main__":
    main()
