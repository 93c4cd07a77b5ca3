"""SIGTERM and Ctrl-C, noticed between steps and between the batches of an evaluation."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from jaxstab.scale.hosts import ALONE, Hosts

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal has asked the run to stop, and its state is saved."""

    def __init__(self, number: int, step: int):
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}, which is saved; the same command continues")
        self.exit_code = 128 + number


class StopRequest:
    """The signal that asked this process to stop, or None; all processes of the run stop together."""

    number: int | None = None

    def __init__(self, hosts: Hosts = ALONE):
        self._hosts = hosts

    def agreed(self) -> int | None:
        """The signal by which the run stops at this boundary, or None."""
        return self._hosts.stop(self.number)

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handles the first signal; a second one has its usual effect."""
        self.number = number
        for each, handler in self.previous.items():
            signal.signal(each, handler)

    def answer(self, step: int) -> None:
        """Raises Stopped where a signal has come; the state after `step` is saved before anybody hears of it."""
        number = self.agreed()
        if number is not None:
            raise Stopped(number, step)

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handles SIGNALS inside the block."""
        self.previous = {number: signal.signal(number, self.take) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in self.previous.items():
                signal.signal(number, handler)
