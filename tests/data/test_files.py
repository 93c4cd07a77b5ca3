"""Local files: every format gives back the documents that went in, and damage gives one line."""

import contextlib
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
from jaxstab.data.compressed import open_binary
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


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_no_bit_of_several_streams_can_flip_and_leave_text_out_in_silence(tmp_path, suffix):
    """Every third bit, and every cut: what is read is all of the text, or there is an error."""
    parts = [f"document {i} ".encode() * 9 for i in range(3)]
    packed, path = b"".join(map(PACK[suffix], parts)), tmp_path / f"a{suffix}"

    def content(data):
        path.write_bytes(data)
        with files.readable(path), open_binary(path) as file:
            return file.read()

    for bit in range(0, 8 * len(packed), 3):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(UserError):  # a name or a time in gzip's header says nothing of the text
            assert content(flipped) == b"".join(parts), bit
    between = {len(PACK[suffix](parts[0])), len(PACK[suffix](parts[0]) + PACK[suffix](parts[1]))}
    for stop in set(range(1, len(packed), 7)) - between:
        with pytest.raises(UserError):
            content(packed[:stop])


@pytest.mark.parametrize(("zeros", "valid"), [(4, True), (8, True), (100_000, True), (1, False), (6, False)])
def test_zeros_behind_a_stream_of_xz_are_read_as_the_format_has_them(tmp_path, texts, zeros, valid):
    lines = write_jsonl(tmp_path / "a.jsonl", texts).read_bytes()
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(lines[:5000]) + bytes(zeros) + lzma.compress(lines[5000:]) + bytes(zeros))
    if valid:
        assert read(path) == texts
    else:
        with pytest.raises(UserError, match=f"{zeros} zeros follow a stream"):
            read(path)


def test_a_long_window_of_zstd_is_named_with_the_remedy(tmp_path):
    """A frame with a window of 256 MiB, by RFC 8878: magic number, descriptor, window (exponent 18), an empty block."""
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes([0, 18 << 3]) + b"\x01\0\0")
    with pytest.raises(UserError, match=r"longer than 128 MiB; zstd -dc --long=31 .*a.jsonl.zst \| zstd"):
        read(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_encodings_are_read_or_named_with_the_remedy(tmp_path, suffix):
    text = '{"text": "Käse"}\n' if suffix == ".jsonl" else "Käse\n"
    path = tmp_path / f"a{suffix}"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text(text, encoding)
        assert read(path) == ["Käse" if suffix == ".jsonl" else text], "a byte-order mark is no text"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        path.write_text(text, encoding)
        with pytest.raises(UserError, match=r"a.* is UTF-16 or binary, .*iconv -f UTF-16"):
            read(path)
    path.write_text(text, "latin-1")
    with pytest.raises(UserError, match=r":1: not UTF-8 text .*iconv -f LATIN1"):
        read(path)


def test_json_that_is_too_deep_is_a_bad_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ' + "[" * 200_000 + '\n{"text": "x", "score": NaN}\n')
    with pytest.raises(UserError, match=r"a.jsonl:1: nested too deeply"):
        read(path)
    assert read(path, BadLines(1)) == ["x"]


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


def test_a_file_of_several_spellings_is_one_and_brackets_may_be_a_name(tmp_path, monkeypatch):
    for name in ("a[1].txt", "a1.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link.txt").symlink_to("a1.txt")
    monkeypatch.chdir(tmp_path)
    spellings = ["a1.txt", "./a1.txt", str(tmp_path / "a1.txt"), f"../{tmp_path.name}/a1.txt", "link.txt", "a?.txt"]
    assert find(spellings) == [Path("a1.txt")]
    assert find(["a[1].txt"]) == [Path("a[1].txt")], "of just that name, and no pattern"
    with pytest.raises(UserError, match="nothing matches"):
        find(["a\0.txt"])


BAD_LINES: dict[str, tuple[str | bytes, str]] = {
    "no field": ('{"body": "x"}', "no field 'text': it has body"),
    "no object": ("[1]", "no field 'text': not even an object"),
    "no string": ('{"text": 3}', "field 'text' is no string"),
    "no json": ("{text", "Expecting property name"),
    "no utf-8": (b'{"text": "\xff"}', "not UTF-8 text (invalid start byte)"),
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


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_a_parquet_row_that_is_not_utf8_costs_itself_alone(tmp_path, kind):
    """As writers leave it that take any bytes for a string."""
    column = pa.array([b"a", b"b\xe9b\xe9", b"c"]).cast(pa.string(), safe=False)
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind, safe=False)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: row 2: not UTF-8 text \(.*\): iconv"):
        read(tmp_path / "a.parquet")
    tolerant = BadLines(1)
    assert read(tmp_path / "a.parquet", tolerant) == ["a", "c"] and len(tolerant.places) == 1


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
