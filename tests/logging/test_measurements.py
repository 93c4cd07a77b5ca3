"""The columnar files of vectors over layers: what goes in comes out, and each step stands once after a resume."""

import os
import tracemalloc
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxstab.config import UserError
from jaxstab.logging import columns, read_measurements
from jaxstab.logging.columns import MeasurementFiles

RATIO, NORM = "stability/update_ratio/down_proj", "stability/weight_norm/q_proj"


def vector(step, layers=4):
    return np.linspace(step, step + 0.1, layers, dtype=np.float32)


def fill(workdir, steps, flush_every=5, last_step=-1, warn=pytest.fail):
    files = MeasurementFiles(workdir, last_step, warn)
    for step in steps:
        files.add(step, {RATIO: vector(step)})
        if step % 3 == 0:
            files.add(step, {NORM: vector(step, layers=2)})
        if step % flush_every == 0:
            files.flush()
    return files


def test_vectors_come_back_exactly_at_their_own_cadence(tmp_path):
    fill(tmp_path, range(1, 13)).flush()
    read = read_measurements(tmp_path)
    assert read.keys() == {RATIO, NORM}
    for name, expected, layers in ((RATIO, range(1, 13), 4), (NORM, range(3, 13, 3), 2)):
        steps, values = read[name]
        assert values.dtype == np.float32
        np.testing.assert_array_equal(steps, list(expected))
        np.testing.assert_array_equal(values, [vector(step, layers) for step in expected])


def test_the_files_say_which_steps_they_hold(tmp_path):
    fill(tmp_path, range(1, 11))
    parts = sorted((tmp_path / "measurements").iterdir())
    assert [part.name for part in parts] == ["000000001-000000005.parquet", "000000006-000000010.parquet"]
    assert pq.read_table(parts[0])["step"].to_pylist()[0] == 1


@pytest.mark.parametrize("resume", [-1, 0, 4, 5, 7, 10, 12])
def test_resuming_leaves_each_step_once(tmp_path, resume):
    fill(tmp_path, range(1, 13)).flush()
    fill(tmp_path, range(max(resume + 1, 1), 16), last_step=resume).flush()
    steps, values = read_measurements(tmp_path)[RATIO]
    np.testing.assert_array_equal(steps, range(1, 16))
    np.testing.assert_array_equal(values, [vector(step) for step in steps])


def test_a_purge_killed_halfway_is_done_again(tmp_path, monkeypatch):
    fill(tmp_path, range(1, 6))
    with monkeypatch.context() as patched:
        patched.setattr(columns.Path, "unlink", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            columns.purge(tmp_path / "measurements", 3)
    assert len(list((tmp_path / "measurements").iterdir())) == 2
    fill(tmp_path, range(4, 6), last_step=3)
    np.testing.assert_array_equal(read_measurements(tmp_path)[RATIO][0], range(1, 6))


DAMAGE = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 10),
    "empty": lambda path: os.truncate(path, 0),
    "foreign": lambda path: path.write_bytes(b"PAR1 and no more"),
    "of another table": lambda path: pq.write_table(pa.table({"x": ["a"]}), path),
    "a hole": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "renamed": lambda path: path.rename(path.with_name("000000001-000000007.parquet")),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("last_step", [7, 10])
def test_a_damaged_file_is_set_aside_and_named_and_the_run_goes_on(tmp_path, kind, last_step):
    fill(tmp_path, range(1, 11))
    DAMAGE[kind](tmp_path / "measurements" / "000000006-000000010.parquet")
    with pytest.raises(UserError, match=r"can't be read|holds steps") if kind != "renamed" else nullcontext():
        read_measurements(tmp_path)
    (tmp_path / "measurements" / "notes-of-mine.parquet").write_text("foreign")
    told = []
    fill(tmp_path, range(last_step + 1, 16), last_step=last_step, warn=told.append).flush()
    (line,) = told
    (aside,) = (tmp_path / "measurements").glob("*.damaged")
    assert line.endswith(f"it is set aside as {aside.name}") and "\n" not in line
    np.testing.assert_array_equal(read_measurements(tmp_path)[RATIO][0], [*range(1, 6), *range(last_step + 1, 16)])


def test_two_flushes_within_a_step_lose_nothing(tmp_path):
    files = MeasurementFiles(tmp_path, -1)
    for name in (RATIO, NORM):
        files.add(5, {name: vector(5)})
        files.flush()
    assert read_measurements(tmp_path).keys() == {RATIO, NORM}


def test_rows_wait_while_the_disk_fails(tmp_path, monkeypatch):
    files = fill(tmp_path, range(1, 4))
    with monkeypatch.context() as patched:
        patched.setattr(columns.pq, "write_table", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            files.flush()
    assert read_measurements(tmp_path) == {}
    files.add(4, {RATIO: vector(4)})
    files.flush()
    np.testing.assert_array_equal(read_measurements(tmp_path)[RATIO][0], range(1, 5))


def test_a_matrix_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vector over layers"):
        MeasurementFiles(tmp_path, -1).add(1, {RATIO: np.zeros((2, 2))})


def row_by_row(directory, after):
    """What `read_measurements` gives, a row at a time, by Arrow's own conversion to Python."""
    rows = {}
    for path in sorted(directory.iterdir()):
        for row in pq.read_table(path).to_pylist():
            if row["step"] > after:
                rows.setdefault(row["name"], []).append((row["step"], row["values"]))
    return {name: list(zip(*sorted(pairs, key=lambda pair: pair[0]), strict=True)) for name, pairs in rows.items()}


@pytest.mark.parametrize("after", [-1, 0, 5, 6, 11, 12])
def test_reading_agrees_with_reading_row_by_row(tmp_path, after):
    """Names of several cadences and lengths, steps out of order, in one part and over parts that overlap."""
    random, files = np.random.default_rng(0), MeasurementFiles(tmp_path, -1)
    for step in (3, 1, 2, 4, 6, 5, 9, 5, 12, 8, 7, 10, 11):
        for index, name in enumerate((RATIO, NORM, "stability/empty", "stability/rare")):
            if index < 3 or step % 5 == 0:
                files.add(step, {name: random.normal(size=(4, 2, 0, 7)[index])})
        if step in (4, 5, 8):
            files.flush()
    files.flush()
    read, expected = read_measurements(tmp_path, after), row_by_row(tmp_path / "measurements", after)
    assert list(read) == list(expected)
    for name, (steps, values) in read.items():
        assert steps.dtype == np.int64 and values.dtype == np.float32
        np.testing.assert_array_equal(steps, expected[name][0])
        np.testing.assert_array_equal(values, np.array(expected[name][1], np.float32))


@pytest.mark.parametrize("flush_every", [1, 9])
def test_vectors_of_one_name_have_one_length(tmp_path, flush_every):
    files = MeasurementFiles(tmp_path, -1)
    for step in (1, 2):
        files.add(step, {RATIO: vector(step, layers=2 + step)})
        if step % flush_every == 0:
            files.flush()
    files.flush()
    with pytest.raises(ValueError, match=r"update_ratio/down_proj has vectors of different lengths: \[3, 4\]"):
        read_measurements(tmp_path)


def test_reading_makes_no_python_object_per_value(tmp_path):
    """Lists of Python floats are eight times the memory of the values, and take ten times as long to make."""
    steps, layers = 4000, 40
    values = pa.ListArray.from_arrays(
        np.arange(0, steps * layers + 1, layers, dtype=np.int32), np.zeros(steps * layers)
    )
    (tmp_path / "measurements").mkdir()
    table = pa.table([range(steps), [RATIO] * steps, values.cast(pa.list_(pa.float32()))], schema=columns.SCHEMA)
    pq.write_table(table, tmp_path / "measurements" / f"{0:09d}-{steps - 1:09d}.parquet")
    tracemalloc.start()
    try:
        read = read_measurements(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read[RATIO][1].shape == (steps, layers)
    assert peak < 6 * read[RATIO][1].nbytes
