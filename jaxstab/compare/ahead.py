"""What a grid will take, asked of a trial step before anything is run; and the time of a step, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxstab import data
from jaxstab.compare.grid import Cell
from jaxstab.compare.programs import Programs
from jaxstab.compare.statistics import Estimate, estimate
from jaxstab.data.sources import open_source
from jaxstab.optimize import Hypers
from jaxstab.train.config import Config
from jaxstab.train.program import Program
from jaxstab.train.step_io import hypers

STEPS = 3  # of a trial, the first of which compiles
ROUNDS = (3, 15)  # in which variants take turns: at least, at most
SHARE = 20  # of a run's steps, one round for every so many: what timing takes beside running


class Sample(NamedTuple):
    """Seconds to compile a step and to take one, and the bytes that it has in memory on a device."""

    compiling: float
    step: float
    memory: int


class StepTime(NamedTuple):
    """The time of a variant's step over the baseline's, and of the baseline's over itself: what noise does."""

    ratio: Estimate
    control: Estimate
    seconds: float


class Timed(Protocol):
    """Something that takes time, told in seconds."""

    def seconds(self) -> float: ...


class Stepper:
    """Takes training steps on one batch, without data, logging and checkpoints."""

    def __init__(self, step: Callable[..., tuple[Any, Any]], state: Any, *inputs: Any):
        """A stepper of a function (state, *inputs) -> (state, measurements) that donates the state."""
        self._step, self._state, self._inputs = step, state, inputs

    def seconds(self) -> float:
        """Takes a step and waits for it."""
        start = time.perf_counter()
        self._state, measured = self._step(self._state, *self._inputs)
        jax.block_until_ready((self._state, measured))
        return time.perf_counter() - start

    def memory(self) -> int:
        """Bytes of a step on one device: what goes in, what is made on the way, and what comes out beside the state."""
        sizes: Any = self._step.lower(self._state, *self._inputs).compile().memory_analysis()  # type: ignore[attr-defined]
        made = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        return sizes.argument_size_in_bytes + made


class Repeated:
    """Takes several steps, one after the other."""

    def __init__(self, stepper: Stepper, count: int):
        self._stepper, self._count = stepper, count

    def seconds(self) -> float:
        """Takes them, and waits for each."""
        return sum(self._stepper.seconds() for _ in range(self._count))


def program_of(config: Config, programs: Programs) -> Program:
    """The program of a run; raises UserError where its tokenizer can't be read or its config has no program."""
    tokenizer = data.load_tokenizer(config.data.tokenizer, config.data.end_token)
    return programs(config.with_vocabulary(tokenizer.vocabulary), tokenizer.end)


def inputs_of(program: Program) -> tuple[np.ndarray, Hypers]:
    """A batch [B, T+1] drawn at random, and the hyper-parameters of a step."""
    config = program.setup.config
    shape = config.train.batch_size, config.data.length + 1
    return np.random.default_rng(0).integers(0, config.model.vocabulary, shape).astype(np.int32), hypers(program)


def stepper_of(config: Config, programs: Programs) -> Stepper:
    """The stepper of a run; raises UserError where it has no program."""
    program = program_of(config, programs)
    return Stepper(program.step, program.init(config.train.seed), *inputs_of(program))


def sample(config: Config, programs: Programs) -> Sample:
    """A few steps of a run, whose data are there; what is compiled for them stays with `programs`, and serves it."""
    open_source(config.data)
    stepper = stepper_of(config, programs)
    first, *seconds = (stepper.seconds() for _ in range(STEPS))
    return Sample(max(0.0, first - min(seconds)), min(seconds), stepper.memory())


def told(cells: Sequence[Cell], count: int, sample: Sample) -> str:
    """What the cells will take, which have so many programs, should all be as the sample was."""
    tokens = sum(cell.config.train.steps * cell.config.train.batch_size * cell.config.data.length for cell in cells)
    each = cells[0].config.train.batch_size * cells[0].config.data.length
    seconds = tokens / each * sample.step + count * sample.compiling
    searches = [cell.config.search for cell in cells]
    gradients = sum(search.iterations * search.gradients for search in searches if search)
    searching = f", at most {gradients * sample.step / 60:,.0f} min of searching initial scales" if gradients else ""
    return (
        f"{tokens:,} tokens and {count} {'program' if count == 1 else 'programs'}; a trial step takes "
        f"{sample.step:.2g} s and {sample.memory / 1e6:,.0f} MB, compiling it {sample.compiling:.2g} s: about "
        f"{seconds / 60:,.0f} min{searching}, and the evaluations"
    )


def in_turns(stepper: Timed, baseline: Timed, steps: int) -> StepTime:
    """Times steps in turns, since a machine's speed drifts: each round takes the variant's and two of the baseline's.

    Args:
      stepper, baseline: what is timed.
      steps: of a run, which say how many rounds are worth it.
    """
    turns = (baseline, baseline, stepper)
    for each in turns:
        each.seconds()  # compiles
    least, most = ROUNDS
    rounds = np.zeros((min(max(steps // SHARE, least), most), 3))
    dice = np.random.default_rng(0)
    for times in rounds:
        for turn in dice.permutation(3):
            times[turn] = turns[turn].seconds()
    reference, again, own = rounds.T
    return StepTime(estimate(own / reference), estimate(again / reference), float(np.median(own)))
