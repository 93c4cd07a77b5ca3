"""What each step of a run is given: a function of its config, its data and its journal."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import data, scale
from jaxstab.optimize import Hypers
from jaxstab.train import lengths
from jaxstab.train.config import Config
from jaxstab.train.journal import Journal
from jaxstab.train.program import Program


class Course:
    """Batches and hyper-parameters by step, counted from 1."""

    def __init__(self, program: Program, split: data.PackedSplit, journal: Journal):
        """The course of a program over a split, with what the journal leaves out and eases."""
        self._program, self._journal = program, journal
        self._size = program.setup.config.train.batch_size
        self._batches = data.Batches(split, program.setup.config.data.seed)
        self._stages = stages(program.setup.config)
        self._eased = functools.cache(functools.partial(hypers, program))

    def records(self, step: int) -> list[int]:
        """The split's records in the batch of a step."""
        first = self.position(step)
        return self._batches.indices(range(first, first + self._size))

    def position(self, step: int) -> int:
        """The first record of a step's batch, counted from the start of training, with those left out."""
        return self._journal.batch_of(step) * self._size

    def tokens(self, step: int) -> np.ndarray:
        """The global batch of a step: int32 [B, T+1]."""
        return self._batches.records(self.position(step), self._size)[:, : self.length(step) + 1]

    def length(self, step: int) -> int:
        """The length T of a step's sequences."""
        return lengths.length_at(self._stages, step - 1)

    def tokens_up_to(self, step: int) -> int:
        """Tokens trained on in the steps up to `step`."""
        return self._size * lengths.tokens_before(self._stages, step)

    def ahead(self, first: int, last: int) -> Iterator[jax.Array]:
        """The batches of steps `first` to `last`, on the devices ahead of time."""
        sharding = scale.batch_sharding(self._program.setup.mesh)
        return data.read_ahead(lambda step: jax.device_put(self.tokens(step), sharding), range(first, last + 1))

    def hypers(self, step: int) -> Hypers:
        """The traced hyper-parameters of a step, on the devices."""
        return self._eased(*self._journal.eased(step))


def stages(config: Config) -> tuple[lengths.Stage, ...]:
    """The lengths of sequences over a run."""
    return lengths.stages(config.train.warmup_lengths, config.train.length_warmup, config.data.length)


def hypers(program: Program, factor: float = 1.0, max_norm: float = 0.0) -> Hypers:
    """A program's hyper-parameters, with a factor on the rate and a limit on the gradient's norm (0 for none)."""
    options = program.setup.config.optimizer
    values = factor * options.learning_rate, options.weight_decay, max_norm or math.inf
    return jax.device_put(Hypers(*map(jnp.float32, values)), scale.replicated(program.setup.mesh))
