"""The batch at a position, reading ahead, and segment ids."""

import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.config import UserError
from jaxstab.data import Batches, PackedSplit, batch_digest, prepare, read_ahead, segment_ids


@pytest.fixture
def train(config):
    return prepare(config).train


def test_an_epoch_is_a_permutation_and_the_next_another(train):
    size, batches = len(train), Batches(train, seed=3)
    epochs = [batches.indices(range(epoch * size, (epoch + 1) * size)) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert Batches(train, seed=4).indices(range(size)) != epochs[0]


TEN = {"documents": 1, "tokens": 11, "records": 10, "files": []}


def test_the_order_of_a_seed_is_fixed_for_good():
    """A run that resumes after an upgrade goes on with the same batches; these numbers must never change."""
    ten = PackedSplit(Path(), "train", {"length": 1, "vocabulary": 9, "splits": {"train": TEN}})
    order = Batches(ten, seed=7).indices(range(20))
    assert order == [7, 9, 0, 8, 4, 2, 5, 6, 3, 1, 6, 0, 4, 2, 7, 9, 1, 5, 8, 3]


def test_a_batch_depends_on_its_position_alone(train):
    size = len(train)
    first, second = Batches(train, 0), Batches(train, 0)
    walked = np.concatenate([first.records(p, 6) for p in range(0, 2 * size, 6)])
    assert walked.dtype == np.int32 and walked.shape[1] == train.length + 1
    for position in (size - 3, 5, size, 0):  # one that straddles the epochs among them
        np.testing.assert_array_equal(second.records(position, 6), walked[position : position + 6])


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_rows_make_up_the_global_batch(train, hosts):
    batches = Batches(train, 1)
    whole, share = batches.records(40, 8), 8 // hosts
    parts = [batches.records(40, 8, slice(i * share, (i + 1) * share)) for i in range(hosts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_corpus_shorter_than_a_batch_is_refused(train):
    with pytest.raises(UserError, match=f"has {len(train)} records of 32 tokens, fewer than a batch of 100000"):
        Batches(train, 0).records(0, 100_000)


def test_reading_outside_the_split_is_an_error(train):
    assert train.read([]).shape == (0, 33)
    for index in (-1, len(train)):
        with pytest.raises(IndexError):
            train.read([index])


def test_reading_ahead_keeps_the_order_and_a_bound():
    made: list[int] = []

    def make(position):
        made.append(position)
        return position

    ahead = read_ahead(make, range(100, 10**9, 8), ahead=3)
    assert [next(ahead) for _ in range(5)] == [100, 108, 116, 124, 132]
    time.sleep(0.05)
    assert 5 <= len(made) <= 8
    ahead.close()


def test_reading_ahead_runs_while_the_consumer_is_busy():
    second = threading.Event()
    ahead = read_ahead(lambda p: second.set() if p == 1 else None, range(10))
    next(ahead)
    assert second.wait(5)
    ahead.close()


def test_an_error_is_raised_at_its_position_and_the_thread_ends():
    def make(position):
        if position == 2:
            raise UserError("damaged")
        return position

    ahead = read_ahead(make, range(10))
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(UserError, match="damaged"):
        next(ahead)
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def test_closing_ends_the_thread():
    ahead = read_ahead(lambda p: p, range(10**9))
    next(ahead)
    assert any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
    ahead.close()
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_segments_change_after_an_end_token(array):
    tokens_BT = array([[5, 9, 6, 7, 9, 9, 1], [1, 2, 3, 4, 5, 6, 7]])
    segments_BT = segment_ids(tokens_BT, end=9)
    assert segments_BT.dtype == np.int32
    assert segments_BT.tolist() == [[0, 0, 1, 1, 1, 2, 3], [0] * 7]


def test_a_batch_has_one_digest_on_host_and_device_and_another_one_if_anything_moves():
    tokens = np.random.default_rng(0).integers(0, 50_000, (8, 33)).astype(np.int32)
    digest = int(batch_digest(tokens))
    assert digest == int(jax.jit(batch_digest)(tokens)) == int(np.float32(digest)) < 1 << 24
    others = [tokens[::-1], tokens[:, ::-1], tokens + 1, np.where(np.arange(33) == 5, tokens + 1, tokens)]
    assert len({digest, *(int(batch_digest(other)) for other in others)}) == 5
