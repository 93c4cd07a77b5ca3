"""Timing in turns: what every benchmark of speed shares.

A machine's speed drifts, so that times are compared within a round: each round takes every variant once, in another
order, and a ratio is the median over rounds. Beside every ratio stands that of a control, the reference once more,
whose distance from 1 is noise.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxstab.model.config import ModelConfig
from jaxstab.reparam import ReparamConfig
from jaxstab.train.config import Config
from jaxstab.train.program import Program, build
from jaxstab.train.step_io import hypers

# The shape of the comparison with other frameworks: 6.8M parameters in matrix products.
SHAPE = dict(width=256, layers=6, heads=4, vocabulary=8192, batch=8, length=256)
Step = Callable[[], None]  # takes one training step and waits for it


def configured(
    batch: int,
    length: int,
    method: str = "identity",
    measure: str = "light",
    loss_chunk: int = 32,
    accumulation: int = 1,
    **model: Any,
) -> Config:
    """The default config with a model and a batch of these sizes."""
    base = Config(reparam=ReparamConfig(method=method))
    return dataclasses.replace(
        base,
        model=ModelConfig(**{"max_length": length, **model}),
        data=dataclasses.replace(base.data, length=length),
        train=dataclasses.replace(base.train, batch_size=batch, loss_chunk=loss_chunk, accumulation=accumulation),
        stability=dataclasses.replace(base.stability, measure=measure),
    )


def random_tokens(vocabulary: int, batch: int, length: int) -> np.ndarray:
    """Tokens `[batch, length + 1]`, int32."""
    return np.random.default_rng(0).integers(0, vocabulary, (batch, length + 1)).astype(np.int32)


def compiled(program: Program) -> jax.stages.Compiled:
    """A program's training step."""
    config = program.setup.config
    tokens = jax.ShapeDtypeStruct((config.train.batch_size, config.data.length + 1), jax.numpy.int32)
    return program.step.lower(program.abstract_state, tokens, hypers(program)).compile()


def step_of(config: Config, program: Program | None = None) -> Step:
    """A training step of a run without its data, logging and checkpoints; compiled and taken once."""
    program = program or build(config)
    values, state = hypers(program), program.init(0)
    tokens = jax.numpy.asarray(random_tokens(config.model.vocabulary, config.train.batch_size, config.data.length))

    def step() -> None:
        nonlocal state
        state, measured = program.step(state, tokens, values)
        jax.block_until_ready((state, measured))

    return warmed(step)


def warmed(step: Step) -> Step:
    """`step`, taken once, which compiles it."""
    step()
    return step


def interleaved(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, one per round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
        names = [*names[1:], names[0]]
        print(f"\r{number + 1} of {rounds} rounds", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], reference: str) -> dict[str, dict[str, Any]]:
    """By name: the median of the ratios to the reference and its 95% interval by resampling rounds; milliseconds."""
    summaries = {}
    for name, values in seconds.items():
        of_rounds = np.divide(values, seconds[reference])
        summaries[name] = {
            "ms": round(1e3 * statistics.median(values), 2),
            "ratio": round(float(np.median(of_rounds)), 4),
            "interval": interval(of_rounds),
            "rounds": len(of_rounds),
        }
    return summaries


def interval(ratios: Sequence[float] | np.ndarray) -> list[float]:
    """The 95% interval of the median of ratios, by resampling them."""
    resampled = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    return [round(float(end), 4) for end in np.quantile(np.median(resampled, axis=1), (0.025, 0.975))]


def doubled(sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The sizes as they are, as `base`, and with each of them doubled in turn, under its name."""
    return {"base": dict(sizes)} | {name: {**sizes, name: 2 * size} for name, size in sizes.items()}
