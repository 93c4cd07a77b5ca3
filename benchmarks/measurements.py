"""What light measurements cost: python benchmarks/measurements.py [proxy|130m] [rounds] > costs.json

Times whole steps, with fetching, writing and TensorBoard, with `stability.measure=off` and `light` in turns, and `off`
once more as the control: what that differs from `off` by is noise. A turn is one step, so that a machine's drift falls
on all alike, and each round takes every variant in another order. The vectors over layers are written as those of a
model of 40 layers. On an idle machine; prints the ratios of each round, of seconds and of the process's CPU seconds,
which what else runs on a machine disturbs less. What a few percent of a step are is hard to see so; `alone` is what the
measurements take by themselves, as a program that shares nothing with the step, against the median step without them.
"""

import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import optax
from rich.console import Console

from jaxstab import stability
from jaxstab.logging import LogConfig, RunLogger
from jaxstab.model.config import ModelConfig
from jaxstab.reparam import ReparamConfig
from jaxstab.train.config import Config
from jaxstab.train.course import hypers
from jaxstab.train.step import Program, TrainState, build

LAYERS = 40  # as which the vectors are written
VARIANTS = {"off": "off", "light": "light", "control": "off"}
CLOCKS = ("seconds", "CPU seconds")


def config_of(shape: str, measure: str) -> Config:
    """The proxy of configs/proxy.py, or the paper's 130M model, under WeSaR."""
    base = Config(reparam=ReparamConfig(method="wesar"))
    if shape == "130m":
        model, batch, length = dataclasses.replace(base.model, remat="full"), 1, 2048
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


class Runner:
    """A run of one variant, without its data."""

    def __init__(self, shape: str, measure: str, workdir: Path):
        config = config_of(shape, measure)
        self.program = build(config)
        self.hypers = hypers(self.program)
        self.state = self.program.init(0)
        tokens = np.random.default_rng(0).integers(
            0, config.model.vocabulary, (config.train.batch_size, config.data.length + 1)
        )
        self.tokens = jax.numpy.asarray(tokens, jax.numpy.int32)
        self.logger = RunLogger(workdir, LogConfig(), None, 0, 10**6, Console(quiet=True))
        self.step = 0
        for _ in range(2):
            self.take()

    def take(self) -> tuple[float, float]:
        """Seconds of a step and of what is done with its metrics, by the clock and of all processors."""
        self.step += 1
        start = time.perf_counter(), time.process_time()
        self.state, metrics = self.program.step(self.state, self.tokens, self.hypers)
        scalars, arrays = jax.device_get(metrics)
        arrays = {name: np.resize(values, LAYERS) for name, values in arrays.items()}
        self.logger.train(self.step, {name: float(value) for name, value in scalars.items()}, arrays)
        jax.block_until_ready(self.state)
        return time.perf_counter() - start[0], time.process_time() - start[1]


def alone(program: Program, state: TrainState, times: int = 10) -> float:
    """Seconds of the light measurements as a program of their own: more than in a step, which has some of the norms."""

    @jax.jit
    def measured(raw: Any, reparam_state: Any, raw_gradients: Any, gradients: Any, seen_by_rule: Any, updates: Any):
        weights, stored = program.reparam.merge(raw, reparam_state), optax.apply_updates(raw, updates)
        return stability.light(
            program.table,
            program.reparam.table,
            raw=raw,
            weights=weights,
            raw_gradients=raw_gradients,
            gradients=gradients,
            seen_by_rule=seen_by_rule,
            updates=updates,
            new_weights=program.reparam.merge(stored, reparam_state),
            eps=program.config.optimizer.eps,
        )

    weights = program.merge(state)
    given = state.raw, state.reparam, state.raw, weights, state.raw, state.raw
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        jax.block_until_ready(measured(*given))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    shape = sys.argv[1] if len(sys.argv) > 1 else "proxy"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    orders = itertools.cycle(itertools.permutations(VARIANTS))
    with tempfile.TemporaryDirectory() as directory:
        runners = {name: Runner(shape, measure, Path(directory) / name) for name, measure in VARIANTS.items()}
        taken = [{name: runners[name].take() for name in next(orders)} for _ in range(rounds)]
        seconds_alone = alone(runners["light"].program, runners["light"].state)
    off = [round(statistics.median(each["off"][clock] for each in taken), 4) for clock in (0, 1)]
    found = {"shape": shape, "rounds": rounds, "a step, off": dict(zip(CLOCKS, off, strict=True))}
    found["alone"] = {"seconds": round(seconds_alone, 4), "over a step": round(seconds_alone / off[0], 4)}
    for clock, what in enumerate(CLOCKS):
        ratios = {name: [each[name][clock] / each["off"][clock] for each in taken] for name in ("light", "control")}
        found[f"{what} over off"] = {name: summary(values) for name, values in ratios.items()}
    print(json.dumps(found, indent=1))


def summary(ratios: list[float]) -> dict[str, Any]:
    """Their median, with the 95% interval that resampling them gives it."""
    resampled = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(resampled, axis=1), (0.025, 0.975))
    rounded = [round(ratio, 4) for ratio in ratios]
    return {"median": round(statistics.median(ratios), 4), "interval": [round(low, 4), round(high, 4)], "all": rounded}


if __name__ == "__main__":
    main()
