"""A step reads the records of its place: the digest of what it was given against that of what stands there.

What stands there is read now, from the packed corpus that the run was trained on, where it still lies in its cache. A
batch that comes again needs no corpus to be known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxstab import data
from jaxstab.config import UserError
from jaxstab.diagnose.checks.base import GAP
from jaxstab.diagnose.history import History, events
from jaxstab.train.config import Config
from jaxstab.train.journal import Journal
from jaxstab.train.step_io import StepBatches

TOKENS = 1 << 27  # that are read at most, some seconds: chosen; of a longer run every n-th batch is looked at
PLACES = 1 << 17  # records among which a batch that isn't its own is looked for: chosen, some seconds
REPEATS = 3  # batches that come again near one another: chosen; of 100,000 batches hundreds have a digest in common


class Replaced(NamedTuple):
    """A step that was given other tokens than the records of its place.

    Attributes:
      step: the step.
      place: the first record of its place, counted from the start of training.
      origin: the record from which on these tokens stand; None where it isn't known.
    """

    step: int
    place: int
    origin: int | None


class Compared(NamedTuple):
    """The steps whose batches were compared, and those of them that were given another batch."""

    steps: tuple[int, ...]
    replaced: tuple[Replaced, ...]


def compared_batches(history: History) -> Compared:
    """Compares batches with the corpus, or with one another where it isn't there."""
    steps, given = history.scalar("train/batch_digest")
    steps, given = steps[np.isfinite(given)].tolist(), given[np.isfinite(given)].astype(np.int64)
    if history.config is None or not steps:
        return Compared((), ())
    if history.split is not None:
        try:
            return _with_corpus(steps, given, history.config, history.split, history.journal)
        except UserError:  # it is damaged
            pass
    return _with_one_another(steps, given.tolist(), history)


def _with_corpus(
    steps: list[int], given: np.ndarray, config: Config, split: data.PackedSplit, journal: Journal
) -> Compared:
    batches = StepBatches(config, split, journal)
    every = -(-batches.tokens_up_to(len(steps)) // TOKENS)
    steps, given = steps[::every], given[::every]
    asked = np.array([data.batch_digest(batches.tokens(step)) for step in steps])
    other = np.flatnonzero(asked != given)
    last = max((batches.position(steps[i]) for i in other), default=0)
    origins = _digests_by_place(config, split, last + config.train.batch_size) if len(other) else {}
    replaced = (Replaced(steps[i], batches.position(steps[i]), origins.get(int(given[i]))) for i in other)
    return Compared(tuple(steps), tuple(replaced))


def _digests_by_place(config: Config, split: data.PackedSplit, end: int) -> dict[int, int]:
    """{digest of a batch: its first record}, of all places up to `end` and a pass on, or as many as PLACES."""
    records = range(min(end + len(split), PLACES, TOKENS // config.data.length))
    tokens = split.read(data.Batches(split, config.data.seed).indices(records))
    digests = data.batch_digests(tokens, config.train.batch_size).tolist() if len(tokens) else []
    return dict(zip(reversed(digests), reversed(range(len(digests))), strict=True))


def _with_one_another(steps: list[int], given: list[int], history: History) -> Compared:
    """A batch that an earlier step had; a shuffled corpus gives none twice, in no pass over it."""
    first = dict(zip(reversed(given), reversed(steps), strict=True))
    origin = {step: first[digest] for step, digest in zip(steps, given, strict=True) if first[digest] != step}
    at = np.array(sorted(origin), np.int64)
    spans = [at[(at >= start) & (at <= end)].tolist() for start, end in events(np.ones(len(at), bool), at, GAP)]
    again = [step for span in spans if len(span) >= REPEATS for step in span]
    replaced = (Replaced(step, _place(history, step), _place(history, origin[step])) for step in again)
    return Compared(tuple(steps), tuple(replaced))


def _place(history: History, step: int) -> int:
    """The record that the batch of a step begins at, by the journal; 0 where no config tells the size of batches."""
    return history.journal.batch_of(step) * history.config.train.batch_size if history.config else 0


def position_breaks(history: History) -> list[tuple[int, int, int]]:
    """Steps whose place in the data isn't the one after the step before: (step, its place, the one it should have)."""
    steps, positions = history.scalar("train/position")
    if history.config is None or not len(steps):
        return []
    expected = np.array([_place(history, int(step)) for step in steps])
    return [(int(steps[i]), int(positions[i]), int(expected[i])) for i in np.flatnonzero(positions != expected)]


def records_from(history: History, record: int, count: int = 1) -> str:
    """The batches of `count` steps that begin at a record, in words: by the steps whose they are, if any's."""
    steps = {_place(history, int(step)): int(step) for step in history.scalar("train/batch_digest")[0]}
    if record not in steps:
        return f"the records from {record} on"
    step = steps[record]
    return f"the batch of step {step}" if count == 1 else f"the batches of steps {step} to {step + count - 1}"
