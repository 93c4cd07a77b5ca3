"""A step reads the records of its place: digests of what it was given against those that were asked for."""

from __future__ import annotations

import numpy as np

from jaxstab.diagnose.history import History


def replaced_batches(history: History) -> list[tuple[int, int | None]]:
    """Steps that were given other tokens than the records of their place, each with the step whose they were.

    That step is the first with this batch, before or after; None where no step of the run asked for it.
    """
    steps, given, asked = _digests(history)
    asked_by = dict(zip(asked[::-1].tolist(), steps[::-1].tolist(), strict=True))
    return [(int(steps[i]), asked_by.get(given[i])) for i in np.flatnonzero(given != asked)]


def position_breaks(history: History) -> list[tuple[int, int, int]]:
    """Steps whose place in the data isn't the one after the step before: (step, its place, the one it should have)."""
    steps, positions = history.scalar("train/position")
    if history.config is None or not len(steps):
        return []
    size = history.config.train.batch_size
    expected = np.array([history.journal.batch_of(int(step)) * size for step in steps])
    return [(int(steps[i]), int(positions[i]), int(expected[i])) for i in np.flatnonzero(positions != expected)]


def _digests(history: History) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, and the digests of what was given and asked for, where both were measured."""
    steps, given = history.scalar("train/batch_digest")
    asked_steps, asked = history.scalar("train/batch_digest_asked")
    steps, at, also = np.intersect1d(steps, asked_steps, return_indices=True)
    return steps, given[at], asked[also]
