"""Sequence-length warmup: training begins on records cut short (Li et al. 2022, arXiv:2108.06084).

Their length grows linearly over the warmup, rounded down to a multiple of 8; here it is rounded down to one of a few
announced lengths, since each takes a program of its own. The length is a function of the update alone.
"""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """Updates `first` and later, until the next stage, train on `length` tokens of each record."""

    first: int
    length: int


def stages(lengths: tuple[int, ...], warmup: int, full: int) -> tuple[Stage, ...]:
    """The stages of a run, from update 0 on.

    Args:
      lengths: the announced lengths, ascending, shorter than `full`; none for no warmup.
      warmup: updates after which the length is `full`.
      full: the length of the records.
    """
    if not lengths:
        return (Stage(0, full),)
    start, span = lengths[0], full - lengths[0]
    reached = [(-(-(length - start) * warmup // span), length) for length in (*lengths, full)]
    # Where one update reaches two lengths, the longer one holds.
    return tuple(Stage(first, length) for first, length in dict(reached).items())


def length_at(stages: tuple[Stage, ...], update: int) -> int:
    """Tokens of each record that an update (from 0) trains on."""
    return max(stage for stage in stages if stage.first <= update).length


def tokens_before(stages: tuple[Stage, ...], update: int) -> int:
    """Tokens of one row of the batches before an update, all of those trained on."""
    ends = [stage.first for stage in stages[1:]]
    return sum(
        stage.length * max(0, min(update, end) - stage.first)
        for stage, end in zip(stages, [*ends, update], strict=True)
    )
