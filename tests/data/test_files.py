"""Local files: every format gives back the documents that went in, and damage gives one line."""

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxstab.config import UserError
from jaxstab.data import files
from jaxstab.data.files import BadLines, file_units, find
from tests.data.conftest import make_texts, write_jsonl

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def read(path: Path, bad: BadLines | None = None) -> list[str]:
    return [text for unit in file_units(path, "text") for text in unit(bad or BadLines(0))]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_jsonl_gives_its_documents(tmp_path, texts, suffix):
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    if suffix:
        packed = path.with_name("a.jsonl" + suffix)
        packed.write_bytes(PACK[suffix](path.read_bytes()))
        path = packed
    assert read(path) == texts


def test_concatenated_streams_are_read_to_the_end(tmp_path, texts):
    lines = write_jsonl(tmp_path / "a.jsonl", texts).read_bytes()
    for suffix, pack in PACK.items():
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(pack(lines[:5000]) + pack(lines[5000:]))
        assert read(path) == texts, suffix


@pytest.mark.parametrize("unit_bytes", [64, 1000, 1 << 20])
def test_cutting_a_jsonl_file_in_units_loses_no_line(tmp_path, texts, unit_bytes, monkeypatch):
    monkeypatch.setattr(files, "UNIT_BYTES", unit_bytes)
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    assert len(file_units(path, "text")) == -(-path.stat().st_size // unit_bytes)
    assert read(path) == texts


@pytest.mark.parametrize("unit_bytes", [10_000, 1 << 20])
def test_plain_text_is_cut_between_paragraphs_and_kept_to_the_byte(tmp_path, unit_bytes, monkeypatch):
    monkeypatch.setattr(files, "UNIT_BYTES", unit_bytes)
    text = "\n\n".join(make_texts(200))
    path = tmp_path / "a.txt"
    path.write_text(text)
    documents = read(path)
    assert "".join(documents) == text
    assert len(documents) > 3
    if unit_bytes > len(text.encode()):
        assert all(doc.endswith("\n\n") and 8192 <= len(doc.encode()) < 16384 for doc in documents[:-1])


@pytest.mark.parametrize("unit_bytes", [1, 1 << 20])
def test_parquet_gives_its_documents(tmp_path, texts, unit_bytes, monkeypatch):
    monkeypatch.setattr(files, "UNIT_BYTES", unit_bytes)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), path, row_group_size=70)
    assert len(file_units(path, "text")) == (5 if unit_bytes == 1 else 1)
    assert read(path) == texts


def test_globs_keep_their_order_and_name_a_file_once(tmp_path):
    for name in ("b.txt", "a.txt", "c.txt"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in find([f"{tmp_path}/c.*", f"{tmp_path}/*.txt"])] == ["c.txt", "a.txt", "b.txt"]


BAD_LINES: dict[str, tuple[str | bytes, str]] = {
    "no field": ('{"body": "x"}', "no field 'text': it has body"),
    "no object": ("[1]", "no field 'text': not even an object"),
    "no string": ('{"text": 3}', "field 'text' is no string"),
    "no json": ("{text", "Expecting property name"),
    "no utf-8": (b'{"text": "\xff"}', "can't decode byte 0xff"),
    "lone surrogate": ('{"text": "\\ud800"}', "surrogates not allowed"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, case, monkeypatch):
    monkeypatch.setattr(files, "UNIT_BYTES", 200)
    line, reason = BAD_LINES[case]
    good = json.dumps({"text": "x" * 100}).encode() + b"\n"
    path = tmp_path / "a.jsonl"
    path.write_bytes(good * 16 + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}:17: ") and reason in str(error.value)
    assert "\n" not in str(error.value)
    tolerant = BadLines(1)
    assert read(path, tolerant) == ["x" * 100] * 17
    assert len(tolerant.places) == 1


def test_a_parquet_row_without_text_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b", None, "c"]}), path, row_group_size=2)
    with pytest.raises(UserError, match="row 3: field 'text' is no string"):
        read(path)


def damaged(path: Path) -> Path:
    """Writes a file that its name promises too much of."""
    whole = json.dumps({"text": "some words " * 50}).encode() + b"\n"
    contents = {
        "cut.jsonl.gz": gzip.compress(whole)[:-9],
        "cut.jsonl.xz": lzma.compress(whole)[:-9],
        "cut.jsonl.zst": PACK[".zst"](whole)[:-9],
        "none.jsonl.gz": b"plain text, not gz",
        "none.jsonl.xz": b"plain text, not xz",
        "none.jsonl.zst": b"plain text, not zst",
        "none.parquet": b"plain text, not parquet",
    }
    path.write_bytes(contents[path.name])
    return path


@pytest.mark.parametrize("name", [f"{kind}.jsonl.{ext}" for kind in ("cut", "none") for ext in ("gz", "xz", "zst")])
def test_a_damaged_file_gives_one_line(tmp_path, name):
    with pytest.raises(UserError, match=rf"{name} cannot be read: .+") as error:
        read(damaged(tmp_path / name))
    assert "\n" not in str(error.value)


def test_no_parquet_gives_one_line(tmp_path):
    with pytest.raises(UserError, match=r"none.parquet cannot be read: Parquet magic bytes not found"):
        read(damaged(tmp_path / "none.parquet"))


def test_a_parquet_file_without_the_field_tells_its_fields(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no field 'text': it has body, id"):
        read(tmp_path / "a.parquet")


def test_text_that_is_not_utf8_is_named_by_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nfine\nb\xe9b\xe9\n")
    with pytest.raises(UserError, match=r"a.txt:3: not UTF-8 text"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "nothing matches"),
        ("empty.txt", "", "is empty"),
        ("a.csv", "x", "not one of .txt, .jsonl"),
        ("a.parquet.gz", "x", "not one of .txt, .jsonl"),
    ],
)
def test_a_useless_file_is_found_before_it_is_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        find([str(tmp_path / name)])


def test_a_directory_is_no_file(tmp_path):
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(UserError, match=r"d.txt cannot be read: not a file"):
        find([str(tmp_path / "*")])
