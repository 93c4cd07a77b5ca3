"""TensorBoard event files, in `workdir/tensorboard`, by the message types of TensorBoard itself."""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

DIRECTORY = "tensorboard"
SECONDS_BETWEEN_FLUSHES = 10
SECONDS_UNTIL_RETRY = 60
CRC32C = 0x82F63B78  # the polynomial of Castagnoli, reflected


class TensorBoard:
    """Writes events in the caller's thread, where a full disk can be noticed and survived."""

    def __init__(self, workdir: Path, last_step: int):
        """Continues after `last_step`: TensorBoard drops what earlier files hold of later steps."""
        self._directory = workdir / DIRECTORY
        self._purge_from: int | None = last_step + 1
        self._file: BinaryIO | None = None
        self._flushed = 0.0
        self._retry = 0.0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars; raises OSError where that fails."""
        content = Summary()
        for name, value in values.items():
            content.value.add(tag=name, simple_value=value)
        self.write(step, content)

    def histogram(self, step: int, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        """Writes counts `[n]` between edges `[n + 1]`, ascending; raises OSError where that fails."""
        middles = (edges[1:] + edges[:-1]) / 2
        histogram = HistogramProto(
            min=float(edges[0]),
            max=float(edges[-1]),
            num=float(counts.sum()),
            sum=float(counts @ middles),
            sum_squares=float(counts @ np.square(middles)),
            bucket_limit=edges[1:].tolist(),
            bucket=counts.tolist(),
        )
        self.write(step, Summary(value=[Summary.Value(tag=name, histo=histogram)]))

    def text(self, step: int, name: str, text: str) -> None:
        """Writes a text, shown as it is, not as Markdown; raises OSError where that fails."""
        shown = "\n".join("    " + line for line in text.splitlines())
        self.write(step, _of_plugin("text", f"{name}/text_summary", tensor=_string(shown.encode(), dimensions=1)))

    def image(self, step: int, name: str, png: bytes, width: int, height: int) -> None:
        """Writes a PNG picture of `width` by `height` pixels; raises OSError where that fails."""
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self.write(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def layout(self, step: int, charts: Mapping[str, Mapping[str, list[str]]]) -> bool:
        """Writes what Custom Scalars shows: patterns of tags by section and chart; see `write`."""
        categories = [
            Category(
                title=section,
                chart=[
                    Chart(title=title, multiline=MultilineChartContent(tag=tags)) for title, tags in by_title.items()
                ],
            )
            for section, by_title in charts.items()
        ]
        content = Layout(category=categories).SerializeToString()
        return self.write(step, _of_plugin("custom_scalars", "custom_scalars__config__", tensor=_string(content)))

    def session_start(self, step: int, options: Mapping[str, bool | float | str]) -> None:
        """Writes the run's line in HParams; raises OSError where that fails."""
        info = SessionStartInfo()
        for name, value in options.items():
            kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
            setattr(info.hparams[name], f"{kind}_value", value)
        self._hparams(step, "_hparams_/session_start_info", HParamsPluginData(session_start_info=info))

    def session_end(self, step: int) -> None:
        """Says in HParams that the run has come to its end; raises OSError where that fails."""
        data = HParamsPluginData(session_end_info=SessionEndInfo(status=STATUS_SUCCESS))
        self._hparams(step, "_hparams_/session_end_info", data)

    def _hparams(self, step: int, tag: str, data: HParamsPluginData) -> None:
        self.write(step, _of_plugin("hparams", tag, data.SerializeToString()))

    def write(self, step: int, content: Summary) -> bool:
        """Writes a summary; raises OSError where that fails.

        Returns:
          Whether it was written: for a minute after a failure nothing is.
        """
        if time.monotonic() < self._retry:
            return False
        with self._retried_later():
            self._file = self._file or self._opened()
            self._file.write(_record(Event(step=step, wall_time=time.time(), summary=content)))
        if time.monotonic() - self._flushed > SECONDS_BETWEEN_FLUSHES:
            self.flush()
        return True

    @contextlib.contextmanager
    def _retried_later(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._file = None  # readers stop at a record cut short, so what follows goes to a new file
            self._retry = time.monotonic() + SECONDS_UNTIL_RETRY
            raise

    def _opened(self) -> BinaryIO:
        self._directory.mkdir(exist_ok=True)
        # Files are read in the order of their names: that of time, also where the host's clock goes backwards.
        now = max(time.time_ns(), 1 + max(map(_time_of, self._directory.glob("events.out.tfevents.*")), default=0))
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now}"
        file = open(self._directory / name, "wb")  # noqa: SIM115, closed by `close`
        file.write(_record(Event(wall_time=time.time(), file_version="brain.Event:2")))
        if self._purge_from is not None:
            start = SessionLog(status=SessionLog.START)
            file.write(_record(Event(step=self._purge_from, wall_time=time.time(), session_log=start)))
            file.flush()
            self._purge_from = None
        return file

    def flush(self) -> None:
        """Brings to disk what was written; raises OSError where that fails."""
        self._flushed = time.monotonic()
        if self._file is not None:
            with self._retried_later():
                self._file.flush()

    def close(self) -> None:
        """Flushes and closes; raises OSError where that fails."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _time_of(path: Path) -> int:
    """The nanosecond in the name of one of our files; 0 where it is of another writer."""
    last = path.name.rpartition(".")[2]
    return int(last) if len(last) == 19 and last.isdecimal() else 0


def _record(event: Event) -> bytes:
    """An event as TFRecord frames it: its length and its bytes, each with a masked CRC-32C."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join((length, _masked_crc(length), content, _masked_crc(content)))


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """The CRC-32C of bytes (RFC 3720).

    The remainder that 32 bits leave, n bytes before the end of the data, is a linear map of them, so that of neighbours
    is found for all pairs at once, and then for pairs of pairs: an event of 25 kB takes a tenth of a loop over bytes.
    """
    count = len(data) // 4
    words = np.frombuffer(data, "<u4", count).astype(np.uint32)
    words[:1] ^= np.uint32(0xFFFFFFFF)
    for level in range(count.bit_length()):
        if len(words) == 1:
            break
        words = np.append(np.zeros(len(words) % 2, np.uint32), words)
        words = _shifted(words[::2], level) ^ words[1::2]
    crc = int(_shifted(words, 0)[0]) if count else 0xFFFFFFFF
    for byte in data[4 * count :]:
        crc = int(_remainders()[(crc ^ byte) & 0xFF]) ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@functools.cache
def _remainders() -> np.ndarray:
    """What is left of each byte, uint32 [256]."""
    table: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> 1 ^ (table & 1) * np.uint32(CRC32C)
    return table


def _shifted(words: np.ndarray, level: int) -> np.ndarray:
    """What is left of words that 4 * 2^level bytes of zeros follow."""
    table = _shifts(level)
    return table[0][words & 255] ^ table[1][words >> 8 & 255] ^ table[2][words >> 16 & 255] ^ table[3][words >> 24]


@functools.cache
def _shifts(level: int) -> np.ndarray:
    """`_shifted` of the words that have one byte alone, uint32 [4, 256]."""
    if level:
        return _shifted(_shifts(level - 1), level - 1)
    words = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    for _ in range(4):
        words = _remainders()[words & 255] ^ words >> 8
    return words


def _of_plugin(plugin: str, tag: str, content: bytes = b"", tensor: TensorProto | None = None) -> Summary:
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin, content=content))
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def _string(content: bytes, dimensions: int = 0) -> TensorProto:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)] * dimensions)
    return TensorProto(dtype=DT_STRING, string_val=[content], tensor_shape=shape)
