"""Packed records on disk: fixed-length rows of tokens in ArrayRecord files, one row per record, read by index."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import operator
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from jaxstab.config import UserError

FILE_BYTES = 256 << 20


def token_dtype(vocabulary: int) -> np.dtype:
    """The smallest stored type that holds ids below `vocabulary`."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


class SplitWriter:
    """Cuts one split's stream of tokens into records of `length` + 1 that overlap by one token."""

    def __init__(self, directory: Path, name: str, length: int, dtype: np.dtype):
        self.documents = self.tokens = self.records = 0
        self._directory, self._name, self._length = directory, name, length
        self._tail = np.empty(0, dtype)
        self._per_file = max(1, FILE_BYTES // ((length + 1) * dtype.itemsize))
        self._files: list[Path] = []
        self._writer: Any = None
        self._sha256 = hashlib.sha256()

    def add(self, tokens: np.ndarray) -> None:
        """Appends tokens to the stream, and writes the records that they complete."""
        self.tokens += len(tokens)
        stream = np.concatenate([self._tail, tokens])
        stop = max(0, len(stream) - 1) // self._length * self._length
        for start in range(0, stop, self._length):
            self._write(stream[start : start + self._length + 1].tobytes())
        self._tail = stream[stop:]

    def _write(self, record: bytes) -> None:
        if self.records % self._per_file == 0:
            self._close_file()
            self._files.append(self._directory / f"{self._name}-{len(self._files):05d}.array_record")
            # One record per chunk, as they are read at random. Compression would save a fifth, and make packing slow.
            with _reported(self._files[-1]):
                self._writer = ArrayRecordWriter(str(self._files[-1]), "group_size:1,uncompressed")
        with _reported(self._files[-1]):
            self._writer.write(record)
        self._sha256.update(record)
        self.records += 1

    def _close_file(self) -> None:
        if self._writer is not None:
            with _reported(self._files[-1]):
                self._writer.close()

    def close(self) -> dict[str, Any]:
        """Drops what doesn't fill a record; returns the split's part of the manifest."""
        self._close_file()
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "records": self.records,
            "sha256": self._sha256.hexdigest(),
            "files": [{"name": path.name, "bytes": path.stat().st_size} for path in self._files],
        }


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turns what the library raises where a file can't be written into what Python raises."""
    try:
        yield
    except RuntimeError as error:  # "UNKNOWN: No space left on device; write() failed; ..."
        raise OSError(errno.EIO, str(error).splitlines()[0].split("; ")[0], str(path)) from error


class PackedSplit:
    """The records of one split, read by index.

    Attributes:
        name: "train" or "validation".
        directory: where its files are.
        files: their paths and sizes in bytes.
        length: T; a record has T+1 tokens.
        documents, tokens, records: counts; tokens include those that end documents.
    """

    def __init__(self, directory: Path, name: str, manifest: dict[str, Any]):
        counts = manifest["splits"][name]
        self.name = name
        self.length: int = manifest["length"]
        self.documents: int = counts["documents"]
        self.tokens: int = counts["tokens"]
        self.records: int = counts["records"]
        self.directory = directory
        self.files: dict[Path, int] = {directory / file["name"]: file["bytes"] for file in counts["files"]}
        self._dtype = token_dtype(manifest["vocabulary"])

    def __len__(self) -> int:
        return self.records

    @functools.cached_property
    def _rows(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource([str(path) for path in self.files])

    def read(self, indices: Iterable[int]) -> np.ndarray:
        """The records at `indices`, in that order: int32 [n, T+1]."""
        wanted = [operator.index(index) for index in indices]
        if not wanted:
            return np.empty((0, self.length + 1), np.int32)
        if not 0 <= min(wanted) <= max(wanted) < self.records:
            raise IndexError(f"the {self.name} split has {self.records} records: no {min(wanted)} to {max(wanted)}")
        try:
            rows = b"".join(self._rows.__getitems__(wanted))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.directory} is damaged, delete it and start again: {reason}") from error
        return np.frombuffer(rows, self._dtype).reshape(len(wanted), self.length + 1).astype(np.int32)
