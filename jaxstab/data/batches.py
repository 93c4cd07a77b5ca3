"""The batch at a position: a pure function of (data seed, position), read ahead of the accelerator."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from jaxstab.config import UserError
from jaxstab.data.records import PackedSplit

Batch = TypeVar("Batch")


class Batches:
    """Training records in the order of a seed: a new permutation each epoch, addressed by position.

    Position p is the p-th record since the start of training. What stands there follows from the seed and the split
    alone, not from hosts, batch sizes, or what was read before.
    """

    def __init__(self, split: PackedSplit, seed: int):
        import grain  # imports JAX, which the processes that tokenise have no use for

        self._split = split
        self._order = grain.MapDataset.range(len(split)).seed(seed).shuffle().repeat()

    def indices(self, positions: Iterable[int]) -> list[int]:
        """The split's record at each position."""
        return [int(self._order[position]) for position in positions]

    def records(self, position: int, count: int, rows: slice = slice(None)) -> np.ndarray:
        """The global batch of `count` records that starts at `position`, or a host's `rows` of it: int32 [rows, T+1].

        Raises:
            UserError: the split is shorter than the batch.
        """
        if count > len(self._split):
            raise UserError(
                f"the {self._split.name} split has {len(self._split)} records of {self._split.length} tokens, "
                f"fewer than a batch of {count}: give more text, or lower the batch or data.length"
            )
        return self._split.read(self.indices(range(position, position + count)[rows]))


def read_ahead(make: Callable[[int], Batch], positions: Iterable[int], ahead: int = 2) -> Generator[Batch, None, None]:
    """Yields `make(position)` for each position, made by one thread that keeps `ahead` results ready.

    What `make` raises is raised at its position. Closing the iterator stops the thread.
    """
    pool = ThreadPoolExecutor(1, "read-ahead")
    ready: collections.deque[Future[Batch]] = collections.deque()
    try:
        for position in positions:
            ready.append(pool.submit(make, position))
            if len(ready) > ahead:
                yield ready.popleft().result()
        while ready:
            yield ready.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def batch_digest(tokens_BS: Any) -> Any:
    """A number by which batches are told apart: the same for the same tokens in the same places, on host and device.

    The sum of all tokens, each times a random odd number of its row and one of its column, modulo 2³², of which the
    upper 24 bits are kept, so that a float32 holds it.

    Args:
        tokens_BS: int [B, S], a NumPy or JAX array.

    Returns:
        A uint32 below 2²⁴, of the same kind.
    """
    return (_row_digests(tokens_BS) * _odd_numbers(tokens_BS.shape[0], 2)).sum(dtype="uint32") >> 8


def batch_digests(tokens_NS: np.ndarray, size: int) -> np.ndarray:
    """The digests of all batches of `size` rows that follow one another in `tokens_NS`: uint32 [N - size + 1]."""
    windows = np.lib.stride_tricks.sliding_window_view(_row_digests(tokens_NS), size)
    return (windows * _odd_numbers(size, 2)).sum(axis=1, dtype="uint32") >> 8


def _row_digests(tokens_BS: Any) -> Any:
    return (tokens_BS.astype("uint32") * _odd_numbers(tokens_BS.shape[1], 1)).sum(axis=1, dtype="uint32")


@functools.cache
def _odd_numbers(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 32, count, np.uint32) | np.uint32(1)


def segment_ids(tokens_BT: Any, end: int) -> Any:
    """Which document of its row each token belongs to, from 0; an end token belongs to the document that it ends.

    Args:
        tokens_BT: int [B, T], a NumPy or JAX array.
        end: the end-of-document id.

    Returns:
        int32 [B, T], of the same kind.
    """
    ended_BT = (tokens_BT == end).astype("int32")
    return ended_BT.cumsum(axis=-1, dtype="int32") - ended_BT
