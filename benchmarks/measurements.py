"""What light measurements cost: python benchmarks/measurements.py [proxy|130m] [rounds] [steps] > costs.json

Times whole steps, with fetching, writing and TensorBoard, with `stability.measure=off` and `light` in turns, and `off`
once more as the control: what that differs from `off` by is noise. Each round takes every variant in another order. The
vectors over layers are written as those of a model of 40 layers. On an idle machine; prints a ratio a round, and their
median.
"""

import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from rich.console import Console

from jaxstab.logging import LogConfig, RunLogger
from jaxstab.model.config import ModelConfig
from jaxstab.reparam import ReparamConfig
from jaxstab.train.config import Config
from jaxstab.train.course import hypers
from jaxstab.train.step import build

LAYERS = 40  # as which the vectors are written
VARIANTS = {"off": "off", "light": "light", "control": "off"}


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
        self.step, self.pending = 0, None
        self.take(2)

    def take(self, steps: int) -> float:
        """Seconds a step, over `steps` of them, in the order of the training loop."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step += 1
            self.state, metrics = self.program.step(self.state, self.tokens, self.hypers)
            if self.pending:
                self.tell(*self.pending)
            self.pending = self.step, metrics
        self.tell(*self.pending)
        self.pending = None
        return (time.perf_counter() - start) / steps

    def tell(self, step: int, metrics) -> None:
        scalars, arrays = jax.device_get(metrics)
        arrays = {name: np.resize(values, LAYERS) for name, values in arrays.items()}
        self.logger.train(step, {name: float(value) for name, value in scalars.items()}, arrays)


def main() -> None:
    shape = sys.argv[1] if len(sys.argv) > 1 else "proxy"
    rounds, steps = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((2, 12), (3, 10)))
    orders = itertools.cycle(itertools.permutations(VARIANTS))
    with tempfile.TemporaryDirectory() as directory:
        runners = {name: Runner(shape, measure, Path(directory) / name) for name, measure in VARIANTS.items()}
        seconds = [{name: runners[name].take(steps) for name in next(orders)} for _ in range(rounds)]
    ratios = {name: [round(each[name] / each["off"], 4) for each in seconds] for name in VARIANTS if name != "off"}
    print(
        json.dumps(
            {
                "shape": shape,
                "steps a turn": steps,
                "seconds a step, off": round(statistics.median(each["off"] for each in seconds), 4),
                "over off": ratios,
                "median": {name: statistics.median(values) for name, values in ratios.items()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
