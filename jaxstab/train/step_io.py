"""What each step of a run is given: batches, sequence lengths and hyper-parameters by step.

They are a function of the config, the data and the journal.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32
from rich.console import Console

from jaxstab import data, scale
from jaxstab.optimize import Hypers
from jaxstab.train.config import Config
from jaxstab.train.journal import Journal
from jaxstab.train.program import Program
from jaxstab.train.search import searched
from jaxstab.train.state import TrainState


class StepBatches:
    """The batch of each step, counted from 1: a function of the config, the split and the journal.

    Attributes:
      lengths: the lengths of the sequences, and from which updates on they hold.
    """

    def __init__(self, config: Config, split: data.PackedSplit, journal: Journal):
        """The batches over a split, without those that the journal leaves out."""
        self._journal, self._batches = journal, data.Batches(split, config.data.seed)
        self._size = config.train.batch_size
        self.lengths = length_schedule(config.train.warmup_lengths, config.train.length_warmup, config.data.length)

    def records(self, step: int) -> list[int]:
        """The split's records in the batch of a step."""
        first = self.position(step)
        return self._batches.indices(range(first, first + self._size))

    def position(self, step: int) -> int:
        """The first record of a step's batch, counted from the start of training; batches left out count too."""
        return self._journal.batch_of(step) * self._size

    def tokens(self, step: int) -> Int[np.ndarray, "B T+1"]:
        """The global batch of a step, int32."""
        return self.rows(step, [slice(None)])

    def rows(self, step: int, rows: Sequence[slice]) -> Int[np.ndarray, "b T+1"]:
        """Some rows of it, read for this alone."""
        parts = [self._batches.records(self.position(step), self._size, each) for each in rows]
        return np.concatenate(parts)[:, : self.length(step) + 1]

    def length(self, step: int) -> int:
        """The length T of a step's sequences."""
        return length_at(self.lengths, step - 1)

    def tokens_up_to(self, step: int) -> int:
        """Tokens trained on in the steps up to `step`."""
        return self._size * tokens_before(self.lengths, step)


class StepInputs(StepBatches):
    """Batches and hyper-parameters by step, counted from 1, on the devices."""

    def __init__(self, program: Program, split: data.PackedSplit, journal: Journal):
        """The inputs of a program over a split, without the batches that the journal leaves out."""
        super().__init__(program.setup.config, split, journal)
        self._program = program
        self._local = scale.LocalRows(program.setup.mesh, self._size)
        self._hypers = functools.cache(functools.partial(hypers, program))
        self._frequencies = unigram_log_frequencies(split, program.setup.config.model.vocabulary)
        self._losses: dict[int, Any] = {}

    def ahead(self, first: int, last: int) -> Iterator[Int[Array, "B T+1"]]:
        """The batches of steps `first` to `last`, on the devices ahead of time; each host reads its devices' rows."""
        local = self._local

        def read(step: int) -> tuple[Int[Array, "B T+1"], Any]:
            tokens = self.rows(step, local.slices)
            losses = self._unigram_losses(tokens)
            return local.placed(tokens), losses if local.are_all else local.placed(losses)

        for step, (tokens, losses) in enumerate(data.read_ahead(read, range(first, last + 1)), first):
            # Gathered before the step is dispatched, so that nobody waits for its end.
            self._losses[step] = losses if local.are_all else self._gather(losses)
            yield tokens

    @functools.cached_property
    def _gather(self) -> Callable[[Array], Array]:
        return jax.jit(lambda rows: rows, out_shardings=scale.replicated(self._program.setup.mesh))

    def metrics(self, step: int) -> dict[str, float]:
        """What is told of a step's batch, once: its place in the data, and the loss that knowing how frequent tokens
        are would have on it."""
        losses = self._losses.pop(step, None)
        losses_B2 = np.asarray(self._unigram_losses(self.tokens(step)) if losses is None else losses)
        unigram_loss = float(np.ascontiguousarray(losses_B2).view(np.float64).mean())
        return {"train/position": float(self.position(step)), "train/unigram_loss": unigram_loss}

    def _unigram_losses(self, tokens: Int[np.ndarray, "b T+1"]) -> UInt32[np.ndarray, "b 2"]:
        """The unigram loss of each row: a float64 as two words, which JAX carries as they are."""
        return (-self._frequencies[tokens[:, 1:]].mean(axis=1, keepdims=True)).view(np.uint32)

    def initial_state(self, console: Console | None = None) -> TrainState:
        """The state before the first step: drawn, by the scales that a search comes to where the config has one, and
        prepared on the first batch where a method asks for that."""
        setup = self._program.setup
        if setup.config.search:
            batches = (self._placed(step) for step in itertools.count(1))
            return searched(setup, setup.config.search, batches, console)
        state = self._program.init(setup.config.train.seed)
        if not any(method.prepare for method in setup.methods):
            return state
        return self._program.prepare(state, self._placed(1))

    def _placed(self, step: int) -> Int[Array, "B T+1"]:
        """The batch of a step on the devices, of which each host reads its rows."""
        return self._local.placed(self.rows(step, self._local.slices))

    def hypers(self, step: int) -> Hypers:
        """The traced hyper-parameters of a step; the rates are on the devices."""
        return self._hypers(*self._journal.rates_after_rollback(step))._replace(position=np.int32(step - 1))


def unigram_log_frequencies(split: data.PackedSplit, vocabulary: int, most: int = 256) -> Float[np.ndarray, " V"]:
    """The logarithm of each token's frequency in at most `most` records, evenly spaced over a split, each counted once
    more than it occurs."""
    indices = np.linspace(0, len(split) - 1, min(most, len(split))).astype(int)
    counts = 1.0 + np.bincount(split.read(indices).ravel(), minlength=vocabulary)
    return np.log(counts / counts.sum())


def hypers(program: Program, factor: float = 1.0, max_norm: float = 0.0) -> Hypers:
    """A program's hyper-parameters, with a factor on the rate and a limit on the gradient's norm (0 for none)."""
    options = program.setup.config.optimizer
    values = factor * options.learning_rate, options.weight_decay, max_norm or math.inf
    return jax.device_put(Hypers(*map(jnp.float32, values)), scale.replicated(program.setup.mesh))


class LengthChange(NamedTuple):
    """Updates `first_update` (from 0) and later, until the next change, train on `length` tokens of each record."""

    first_update: int
    length: int


def length_schedule(lengths: tuple[int, ...], warmup: int, full: int) -> tuple[LengthChange, ...]:
    """The lengths of sequences over a run, from update 0 on (Li et al. 2022, arXiv:2108.06084).

    With sequence-length warmup, training begins on records that are cut short, whose length grows linearly. Li et al.
    round it down to a multiple of 8; here it is rounded down to an announced length, since each takes a program of its
    own.

    Args:
      lengths: the announced lengths, ascending, shorter than `full`; none for no warmup.
      warmup: updates after which the length is `full`.
      full: the length of the records.
    """
    if not lengths:
        return (LengthChange(0, full),)
    start, span = lengths[0], full - lengths[0]
    changes = [(-(-(length - start) * warmup // span), length) for length in (*lengths, full)]
    # Where one update reaches two lengths, the longer one holds.
    return tuple(LengthChange(first, length) for first, length in dict(changes).items())


def length_at(schedule: tuple[LengthChange, ...], update: int) -> int:
    """Tokens of each record that an update (from 0) trains on."""
    return max(change for change in schedule if change.first_update <= update).length


def tokens_before(schedule: tuple[LengthChange, ...], update: int) -> int:
    """Tokens that the batches before an update have trained on, per row of a batch."""
    ends = [change.first_update for change in schedule[1:]]
    return sum(
        change.length * max(0, min(update, end) - change.first_update)
        for change, end in zip(schedule, [*ends, update], strict=True)
    )
