"""Compressed files as streams of bytes, in which damage is an error wherever it is."""

from __future__ import annotations

import gzip
import io
import lzma
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

SUFFIXES = (".gz", ".xz", ".zst")
BLOCK_BYTES = 1 << 16
LONG_WINDOW = "Frame requires too much memory"  # how zstd says that a window is longer than 128 MiB


def open_binary(path: Path) -> IO[bytes]:
    """Opens a file to be read: all streams, members or frames of a compressed one, and a plain one as it is."""
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".xz":
        return io.BufferedReader(_XzStreams(path))
    if path.suffix == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def remedy(path: Path, reason: str) -> str:
    """What to do about what a library says of a file; "" where it is damaged."""
    if LONG_WINDOW in reason:
        return f": its window is longer than 128 MiB; zstd -dc --long=31 {path} | zstd writes one that is shorter"
    return ""


class _XzStreams(io.RawIOBase):
    """The streams of an .xz file, with zeros between them as the format allows.

    Python's own reader takes whatever it can't read behind a stream for the end of the file: a damaged stream, and all
    that follow it, would be left out without a word.
    """

    def __init__(self, path: Path):
        self._file = open(path, "rb")  # noqa: SIM115, closed by `close`
        self._stream = lzma.LZMADecompressor()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer) -> int:
        data = b""
        while not data:
            if self._stream.eof and not self._next_stream():
                return 0
            data = self._stream.decompress(self._input(), len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _input(self) -> bytes:
        if not self._stream.needs_input:
            return b""
        block = self._file.read(BLOCK_BYTES)
        if not block:
            raise EOFError("it ends within a stream")
        return block

    def _next_stream(self) -> bool:
        """Goes over padding to the next stream; returns whether there is one."""
        rest, padding = self._stream.unused_data, 0
        while True:
            begins = rest.lstrip(b"\0")
            padding += len(rest) - len(begins)
            rest = begins or self._file.read(BLOCK_BYTES)
            if begins or not rest:
                break
        if padding % 4:
            raise lzma.LZMAError(f"{padding} zeros follow a stream, which is no multiple of four")
        if begins:
            self._file.seek(-len(begins), io.SEEK_CUR)
            self._stream = lzma.LZMADecompressor()
        return bool(begins)
