"""TensorBoard event files, in `workdir/tensorboard`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

DIRECTORY = "tensorboard"
SECONDS_BETWEEN_FLUSHES = 10
SECONDS_UNTIL_RETRY = 60


class TensorBoard:
    """Writes events in the caller's thread, where a full disk can be noticed and survived."""

    def __init__(self, workdir: Path, last_step: int):
        """Continues after `last_step`: TensorBoard drops what earlier files hold of later steps."""
        self._directory = workdir / DIRECTORY
        self._purge_from: int | None = last_step + 1
        self._writer: EventsWriter | None = None
        self._flushed = 0.0
        self._retry = 0.0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars; raises OSError where that fails."""
        if values:
            parts = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self.write(step, Summary(value=parts))

    def histogram(self, step: int, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        """Writes counts `[n]` between edges `[n + 1]`, ascending; raises OSError where that fails."""
        middles, total = (edges[1:] + edges[:-1]) / 2, float(counts.sum())
        moments = float(counts @ middles), float(counts @ np.square(middles))
        span = float(edges[0]), float(edges[-1])
        self.write(step, summary.histogram_raw(name, *span, total, *moments, edges[1:].tolist(), counts.tolist()))

    def text(self, step: int, name: str, text: str) -> None:
        """Writes a text, shown as it is, not as Markdown; raises OSError where that fails."""
        self.write(step, summary.text(name, "\n".join("    " + line for line in text.splitlines())))

    def image(self, step: int, name: str, png: bytes, width: int, height: int) -> None:
        """Writes a PNG picture of `width` by `height` pixels; raises OSError where that fails."""
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self.write(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def write(self, step: int, content: Summary) -> bool:
        """Writes any summary; raises OSError where that fails.

        Returns:
          Whether it was written: for a minute after a failure nothing is.
        """
        if time.monotonic() < self._retry:
            return False
        with self._retried_later():
            self._writer = self._writer or self._opened()
            self._writer.write_event(Event(step=step, wall_time=time.time(), summary=content))
        if time.monotonic() - self._flushed > SECONDS_BETWEEN_FLUSHES:
            self.flush()
        return True

    @contextlib.contextmanager
    def _retried_later(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._writer = None  # readers stop at a record cut short, so what follows goes to a new file
            self._retry = time.monotonic() + SECONDS_UNTIL_RETRY
            raise

    def _opened(self) -> EventsWriter:
        self._directory.mkdir(exist_ok=True)
        suffix = f".{time.time_ns()}"  # files of the same second have distinct names, in their order
        writer = EventsWriter(str(self._directory / "events"), suffix)
        if self._purge_from is not None:
            start = SessionLog(status=SessionLog.START)
            writer.write_event(Event(step=self._purge_from, wall_time=time.time(), session_log=start))
            writer.flush()
            self._purge_from = None
        return writer

    def flush(self) -> None:
        """Brings to disk what was written; raises OSError where that fails."""
        self._flushed = time.monotonic()
        if self._writer is not None:
            with self._retried_later():
                self._writer.flush()

    def close(self) -> None:
        """Flushes and closes; raises OSError where that fails."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
