"""Packing and its cache: every token once, the same by any number of processes, whole or not there at all."""

import collections
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxstab import safe_json
from jaxstab.config import ConfigError, UserError
from jaxstab.data import cache, files, identity, packing, prepare, records
from jaxstab.data.packing import split_of
from tests.data.conftest import make_texts, write_jsonl

PREPARE = "from jaxstab.data import *; prepare({!r})"


def stream(split) -> list[int]:
    """The tokens of a split, from its records."""
    records = split.read(range(len(split)))
    np.testing.assert_array_equal(records[1:, 0], records[:-1, -1])
    return [*records[:, :-1].ravel().tolist(), int(records[-1, -1])] if len(split) else []


def expected_stream(texts, split, fraction) -> list[int]:
    """The bytes of the split's documents, in order, each followed by 256."""
    return list(itertools.chain(*([*text.encode(), 256] for text in texts if split_of(text, fraction) == split)))


def test_records_hold_every_document_once_in_order(config, texts):
    prepared = prepare(config)
    for split in (prepared.train, prepared.validation):
        expected = expected_stream(texts, split.name, config.validation_fraction)
        assert split.tokens == len(expected)
        assert len(split) == (len(expected) - 1) // 32
        assert stream(split) == expected[: 32 * len(split) + 1]
    assert prepared.train.documents + prepared.validation.documents == len(texts)
    assert 0.03 < prepared.validation.documents / len(texts) < 0.2


def test_a_document_and_its_copy_are_in_one_split(tmp_path, config):
    texts = make_texts(100, words=5)
    write_jsonl(tmp_path / "twice.jsonl", texts * 2)
    prepared = prepare(
        dataclasses.replace(config, files=(f"{tmp_path}/twice.jsonl",), validation_fraction=0.5, length=4)
    )
    counts = []
    for split in (prepared.train, prepared.validation):
        documents = bytes(token % 256 for token in stream(split)).split(b"\0")[:-1]
        counts.append(collections.Counter(documents))
        assert set(list(counts[-1].values())[:-1]) == {2}
    assert not counts[0].keys() & counts[1].keys()


@pytest.mark.parametrize(("fraction", "train", "validation"), [(0.0, 300, 0), (1.0, 0, 300)])
def test_a_whole_source_can_be_one_split(config, fraction, train, validation):
    prepared = prepare(dataclasses.replace(config, validation_fraction=fraction))
    assert (prepared.train.documents, prepared.validation.documents) == (train, validation)
    assert bool(len(prepared.train)) != bool(len(prepared.validation))


def test_the_number_of_processes_changes_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "UNIT_BYTES", 4000)
    one, three = (
        prepare(dataclasses.replace(config, workers=workers, cache_dir=str(tmp_path / str(workers))))
        for workers in (1, 3)
    )
    assert one.digest == three.digest and one.directory.name == three.directory.name
    contents = [{path.name: path.read_bytes() for path in made.directory.iterdir()} for made in (one, three)]
    assert contents[0] == contents[1]


def test_large_vocabularies_are_stored_in_four_bytes_and_files_are_cut(config, monkeypatch):
    small = prepare(config)
    monkeypatch.setattr("jaxstab.data.records.FILE_BYTES", 10_000)
    monkeypatch.setattr("jaxstab.data.tokenizers.ByteTokenizer.vocabulary", 70_000)
    monkeypatch.setattr("jaxstab.data.tokenizers.ByteTokenizer.digest", "another")
    large = prepare(config)
    assert len(list(large.directory.glob("train-*"))) > 3
    assert sum(path.stat().st_size for path in large.directory.glob("train-*")) > 66 * 2 * len(large.train)
    np.testing.assert_array_equal(small.train.read(range(len(small.train))), large.train.read(range(len(large.train))))


def test_a_complete_cache_is_opened_without_reading_the_source(config, monkeypatch):
    monkeypatch.setattr(identity, "SETTLED_NS", 0)
    first = prepare(config)
    monkeypatch.setattr(cache, "pack", lambda *_: pytest.fail("packed again"))
    monkeypatch.setattr(identity, "digest", lambda *_: pytest.fail("read again"))
    start = time.perf_counter()
    assert prepare(config).digest == first.digest
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "change", [{"length": 16}, {"validation_fraction": 0.3}, {"max_tokens": 9}, {"field": "id2"}, {"files": ("b",)}]
)
def test_what_changes_the_records_changes_the_key(config, tmp_path, change):
    for seed, name in enumerate("ab"):
        texts = make_texts(60, seed)
        rows = [json.dumps({"text": text, "id2": text}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    config = dataclasses.replace(config, files=(f"{tmp_path}/a.jsonl",))
    if "files" in change:
        change = {"files": (f"{tmp_path}/b.jsonl",)}
    assert prepare(config).directory != prepare(dataclasses.replace(config, **change)).directory
    for free in ({"seed": 5}, {"workers": 2}, {"bad_lines": 3}):
        assert prepare(config).directory == prepare(dataclasses.replace(config, **free)).directory


def test_a_changed_file_is_tokenised_again(config, tmp_path):
    first = prepare(config)
    path = tmp_path / "corpus" / "a.jsonl"
    path.write_text(path.read_text().replace("loss", "gain"))
    os.utime(path, ns=(1, 1))
    assert prepare(config).digest != first.digest


def test_content_decides_where_name_size_and_time_are_the_same(config, tmp_path, monkeypatch):
    """In two directories, and in one: `touch` can't set the time of the inode's last change."""
    monkeypatch.setattr(identity, "SETTLED_NS", 0)
    digests = set()
    for name, words in (("v1", "loss"), ("v2", "gain"), ("v1", "norm")):
        (tmp_path / name).mkdir(exist_ok=True)
        path = write_jsonl(tmp_path / name / "t.jsonl", [f"{words} {i}" * 9 for i in range(20)])
        os.utime(path, ns=(10**18, 10**18))
        digests.add(prepare(dataclasses.replace(config, files=(str(path),))).digest)
    assert len(digests) == 3


def test_equal_content_elsewhere_is_the_same_corpus(config, tmp_path):
    moved = dataclasses.replace(config, files=(f"{tmp_path}/elsewhere/*.jsonl",))
    shutil.copytree(tmp_path / "corpus", tmp_path / "elsewhere")
    assert prepare(config).directory == prepare(moved).directory


def test_notes_that_are_damaged_or_too_fresh_are_not_relied_on(config, tmp_path, monkeypatch):
    first = prepare(config)
    notes = tmp_path / "cache" / identity.NOTES
    assert safe_json.load(notes) == {}, "a file that has just been written may be written again within the same tick"
    for content in (b"", b"[]", b"\xff\xfe", b'{"x":' * 9999, b'{"' + str(tmp_path).encode() + b'/corpus/a.jsonl": 3}'):
        notes.write_bytes(content)
        assert prepare(config).directory == first.directory


def test_max_tokens_stops_after_a_unit(config, monkeypatch):
    monkeypatch.setattr(files, "UNIT_BYTES", 4000)
    whole, part = prepare(config), prepare(dataclasses.replace(config, max_tokens=10_000, workers=2))
    assert 10_000 <= part.train.tokens < 15_000 < whole.train.tokens
    np.testing.assert_array_equal(part.train.read(range(200)), whole.train.read(range(200)))
    assert {path.suffix for path in part.directory.iterdir()} == {".json", ".array_record"}


DAMAGE = {
    "cut": lambda path: os.truncate(path / "train-00000.array_record", 1000),
    "file missing": lambda path: (path / "validation-00000.array_record").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "half a manifest": lambda path: os.truncate(path / "manifest.json", 200),
    "an empty manifest": lambda path: os.truncate(path / "manifest.json", 0),
    "a manifest in UTF-16": lambda path: (path / "manifest.json").write_text("{}", "utf-16"),
    "a foreign manifest": lambda path: (path / "manifest.json").write_text('["splits"]'),
    "a deep manifest": lambda path: (path / "manifest.json").write_text('{"splits":' * 99_999),
    "a manifest of another recipe": lambda path: edit(path, lambda manifest: manifest["recipe"].update(length=31)),
    "a path out of the cache": lambda path: edit(path, outside),
}


def edit(directory, change):
    manifest = safe_json.load(directory / "manifest.json")
    change(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def outside(manifest):
    (file,) = manifest["splits"]["train"]["files"]
    file["name"] = "../" + file["name"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_half_written_cache_is_made_again(config, damage, capsys):
    first = prepare(config)
    DAMAGE[damage](first.directory)
    again = prepare(config)
    assert again.digest == first.digest and len(stream(again.train)) > 1000
    assert "made again" in capsys.readouterr().err.replace("\n", "")


def test_a_flipped_bit_is_noticed_when_it_is_read(config):
    prepared = prepare(config)
    path = prepared.directory / "train-00000.array_record"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged, delete it") as error:
        prepare(config).train.read(range(len(prepared.train)))
    assert "\n" not in str(error.value)


def start(config, environment, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PREPARE.format(config)], env=environment, **options)


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether the process is there, and not only waiting for its parent to take notice of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


@pytest.fixture
def large(config, tmp_path):
    """A corpus that takes a second or so, in several units."""
    write_jsonl(tmp_path / "large.jsonl", make_texts(2000) * 12)
    return dataclasses.replace(config, files=(f"{tmp_path}/large.jsonl",), workers=2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_killed_in_tokenising_leaves_nothing_in_the_way(large, tmp_path, environment):
    process = start(large, environment, stderr=subprocess.DEVNULL)
    cache_dir = Path(large.cache_dir)
    wait_for(lambda: any(path.stat().st_size for path in cache_dir.glob("*.building-*/*.train")))
    workers = children(process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(workers) >= 2
    wait_for(lambda: not any(map(runs, workers)), 10)
    assert list(cache_dir.glob("*.building-*/*.train")), "the kill did not land in tokenising"
    assert not list(cache_dir.glob("*/manifest.json"))
    again = prepare(large)
    undisturbed = prepare(dataclasses.replace(large, cache_dir=str(tmp_path / "undisturbed"), workers=1))
    assert again.digest == undisturbed.digest
    everything = range(len(undisturbed.train))
    np.testing.assert_array_equal(again.train.read(everything), undisturbed.train.read(everything))
    assert not list(cache_dir.glob("*.building-*"))


def test_two_runs_that_start_at_once_share_one_cache(large, environment):
    runs = [start(large, environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted("Tokenising 1 files" in text for text in told) == [False, True], told
    assert "Waiting for another run" in "".join(told)
    assert len(prepare(large).train) > 1000


def test_a_failure_in_a_worker_reaches_the_caller_and_leaves_nothing(large, tmp_path):
    path = tmp_path / "large.jsonl"
    with open(path, "a") as file:
        file.write('{"body": 1}\n')
    with pytest.raises(UserError, match=r"large.jsonl:24001: no field 'text'"):
        prepare(large)
    assert {entry.suffix for entry in Path(large.cache_dir).iterdir()} <= {".lock", ".json"}


def test_bad_lines_are_counted_over_all_files(config, tmp_path, capsys):
    for name in ("a", "b"):
        with open(tmp_path / "corpus" / f"{name}.jsonl", "a") as file:
            file.write("{}\n")
    with pytest.raises(UserError, match=r"b.jsonl:151: no field 'text'"):
        prepare(dataclasses.replace(config, bad_lines=1))
    prepare(dataclasses.replace(config, bad_lines=2))
    assert "2 bad lines were skipped" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"data.bad_lines=1 are tolerated"):
        prepare(dataclasses.replace(config, bad_lines=1))


def test_too_little_text_for_a_record(config):
    with pytest.raises(
        UserError, match=r"the train split has \d+ tokens in \d+ documents, fewer than one record of 100001"
    ):
        prepare(dataclasses.replace(config, length=100_000))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_the_reason_in_one_line_and_leaves_nothing(config, tmp_path, monkeypatch, workers):
    """In the library's writer, which raises RuntimeError; /dev/full takes no byte."""
    real = records.ArrayRecordWriter
    monkeypatch.setattr(records, "ArrayRecordWriter", lambda _, options: real("/dev/full", options))
    monkeypatch.setattr(files, "UNIT_BYTES", 4000)
    with pytest.raises(UserError, match=r"data.cache_dir=.*cache cannot be written: .*No space left") as error:
        prepare(dataclasses.replace(config, workers=workers))
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache_dir=.*file/cache cannot be written"):
        prepare(dataclasses.replace(config, cache_dir=str(tmp_path / "file" / "cache")))


@pytest.mark.parametrize(
    "change",
    [
        {"length": 0},
        {"validation_fraction": 1.5},
        {"workers": -1},
        {"bad_lines": -1},
        {"files": ()},
        {"source": "tfds"},
        {"source": "huggingface"},
    ],
)
def test_values_that_cannot_be_used_are_named(config, change):
    key = "name" if "source" in change else next(iter(change))
    with pytest.raises(ConfigError, match=rf"\b{key}\b"):
        dataclasses.replace(config, **change)


def test_the_share_of_validation_is_what_was_asked():
    sides = collections.Counter(split_of(str(i), 0.25) for i in range(20_000))
    assert sides["validation"] / 20_000 == pytest.approx(0.25, abs=0.01)
    assert packing.SPLITS == ("train", "validation")
