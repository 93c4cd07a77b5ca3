"""Documents from local files: .txt, .jsonl and .parquet, plain or compressed.

A file is cut into units of work, each a picklable function that yields documents, so that processes can share a corpus.
A compressed file is one unit. A plain file is one unit per `UNIT_BYTES`, and so is a Parquet file, in whole row groups.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import glob
import itertools
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxstab import safe_json
from jaxstab.config import UserError
from jaxstab.data.compressed import SUFFIXES as COMPRESSED
from jaxstab.data.compressed import open_binary, remedy

UNIT_BYTES = 8 << 20
PASSAGE_BYTES = 8 << 10
FORMATS = (".txt", ".jsonl", ".json", ".parquet")


class BadLines:
    """The places of lines that hold no text; more than `limit` of them are an error."""

    def __init__(self, limit: int):
        self.limit = limit
        self.places: list[str] = []

    def add(self, where: str) -> None:
        """Notes one bad line; raises UserError once there are more than the limit."""
        self.places.append(where)
        if len(self.places) > self.limit:
            raise UserError(f"{where} ({len(self.places)} bad so far; data.bad_lines={self.limit} are tolerated)")


Unit = Callable[[BadLines], Iterator[str]]


def find(globs: Iterable[str]) -> list[Path]:
    """The files that the globs match, each once however it is spelt, sorted within a glob.

    Raises:
      UserError: a glob matches nothing, or a file of no use.
    """
    paths: dict[Path, Path] = {}
    for pattern in globs:
        matches = _matches(os.path.expanduser(pattern))
        if not matches:
            raise UserError(f"data.files: nothing matches {pattern!r} (from {os.getcwd()})")
        for path in matches:
            paths.setdefault(path.resolve(), path)
    for path in paths.values():
        _check(path)
    return list(paths.values())


def _matches(pattern: str) -> list[Path]:
    """A file of just that name, with brackets in it, say; else what the pattern matches."""
    try:
        return [Path(pattern)] if os.path.exists(pattern) else sorted(map(Path, glob.glob(pattern, recursive=True)))
    except ValueError:  # a NUL
        return []


def _check(path: Path) -> None:
    if _suffix(path) not in FORMATS or (_suffix(path) == ".parquet" and path.suffix in COMPRESSED):
        raise UserError(f"{path}: not one of {', '.join(FORMATS)} (all but .parquet also with {'/'.join(COMPRESSED)})")
    if not path.is_file() or not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: {'no permission' if path.is_file() else 'not a file'}")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")


def kind(path: Path) -> tuple[str, str]:
    """How a file is read: its format, and how it is compressed."""
    return _suffix(path), path.suffix if path.suffix in COMPRESSED else ""


def file_units(path: Path, field: str) -> list[Unit]:
    """The units of work that make up one file."""
    if _suffix(path) == ".parquet":
        return _parquet_units(path, field)
    plain = _suffix(path) == ".txt"
    read = functools.partial(_passages, path) if plain else functools.partial(_json_lines, path, field)
    if path.suffix in COMPRESSED:
        return [functools.partial(read, 0, sys.maxsize)]
    starts = range(0, path.stat().st_size, UNIT_BYTES)
    return [functools.partial(read, start, start + UNIT_BYTES) for start in starts]


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what a damaged or unreadable file raises into one line."""
    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
        reason = reason_of(error)
        raise UserError(f"{path} cannot be read: {reason}{remedy(path, reason)}") from error


def reason_of(error: Exception) -> str:
    """What went wrong, on one line; the kind of an error that says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _lines(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """The lines that begin in [start, stop), without a byte-order mark before the first."""
    with readable(path), open_binary(path) as file:
        at = start
        if start:
            file.seek(start - 1)
            at = start - 1 + len(file.readline())
        while at < stop and (line := file.readline()):
            yield line if at else _first(path, line)
            at += len(line)


def _first(path: Path, line: bytes) -> bytes:
    """The first line of a file; raises UserError where it isn't UTF-8 from its first bytes on."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in line[:4]:
        raise UserError(f"{path} is UTF-16 or binary, not UTF-8 text: iconv -f UTF-16 -t UTF-8 makes UTF-8 of UTF-16")
    return line.removeprefix(codecs.BOM_UTF8)


def _not_utf8(where: str, error: UnicodeDecodeError) -> str:
    return f"{where}: not UTF-8 text ({error.reason}): iconv -f LATIN1 -t UTF-8 makes UTF-8 of Latin-1"


def _place(path: Path, start: int, line: int) -> str:
    """`path:number` of a unit's line; the lines before the unit are counted only now that something is wrong."""
    before = sum(1 for _ in _lines(path, 0, start)) if start else 0
    return f"{path}:{before + line}"


def _json_lines(path: Path, field: str, start: int, stop: int, bad: BadLines) -> Iterator[str]:
    for number, line in enumerate(_lines(path, start, stop), 1):
        if not line.strip():
            continue
        try:
            text = text_of(safe_json.loads(line.decode()), field)
        except UnicodeDecodeError as error:
            bad.add(_not_utf8(_place(path, start, number), error))
        except ValueError as error:
            bad.add(f"{_place(path, start, number)}: {error}")
        else:
            yield text


def text_of(record: Any, field: str) -> str:
    """The text of one record (a mapping with a str or UTF-8 bytes); ValueError says why there is none."""
    if not isinstance(record, dict) or field not in record:
        keys = f"it has {', '.join(map(str, record))}" if isinstance(record, dict) else "not even an object"
        raise ValueError(f"no field {field!r}: {keys}")
    text = record[field].decode() if isinstance(record[field], bytes) else record[field]
    if not isinstance(text, str):
        raise ValueError(f"field {field!r} is no string")
    text.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    return text


def _passages(path: Path, start: int, stop: int, _bad: BadLines) -> Iterator[str]:
    """Documents of a plain text, each of which ends with the first blank line after 8 KiB, or with any after 16 KiB."""
    lines: list[str] = []
    size = 0
    for number, line in enumerate(_lines(path, start, stop), 1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError as error:
            raise UserError(_not_utf8(_place(path, start, number), error)) from error
        size += len(line)
        if size >= 2 * PASSAGE_BYTES or (size >= PASSAGE_BYTES and not line.strip()):
            yield "".join(lines)
            lines, size = [], 0
    yield "".join(lines)


def _parquet_units(path: Path, field: str) -> list[Unit]:
    with readable(path), pq.ParquetFile(path) as file:
        if field not in file.schema_arrow.names:
            raise UserError(f"{path}: no field {field!r}: it has {', '.join(file.schema_arrow.names)}")
        sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    return [functools.partial(_parquet_rows, path, field, groups) for groups in _gather(sizes)]


def _gather(sizes: list[int]) -> list[list[int]]:
    """Groups of consecutive indices; a new group begins where the sizes add up to the next UNIT_BYTES."""
    starts = itertools.accumulate(sizes, initial=0)
    groups = itertools.groupby(zip(starts, range(len(sizes)), strict=False), lambda pair: pair[0] // UNIT_BYTES)
    return [[index for _, index in group] for _, group in groups]


def _parquet_rows(path: Path, field: str, groups: list[int], bad: BadLines) -> Iterator[str]:
    with readable(path), pq.ParquetFile(path) as file:
        row = sum(file.metadata.row_group(group).num_rows for group in range(groups[0]))
        for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=[field]):
            for value in _strings_as_bytes(batch.column(0)).to_pylist():
                row += 1
                yield from tolerated({field: value}, field, f"{path}: row {row}", bad)


def _strings_as_bytes(column: pa.Array) -> pa.Array:
    """A column whose strings are bytes: writers of other tools don't check that they are UTF-8, and a batch with one
    that isn't couldn't be read at all."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return column.cast(pa.large_binary()) if is_text else column


def tolerated(record: Any, field: str, where: str, bad: BadLines) -> Iterator[str]:
    """Yields the record's text, or notes in `bad` that it has none."""
    try:
        text = text_of(record, field)
    except UnicodeDecodeError as error:
        bad.add(_not_utf8(where, error))
    except ValueError as error:
        bad.add(f"{where}: {error}")
    else:
        yield text
