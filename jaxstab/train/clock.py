"""How long each step takes, whatever the host does between steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # the event that JAX records at the end of a compilation


class StepClock:
    """Times each step from the end of the one before it, or from the last `restart`, to its own end.

    A thread waits for the steps: the host dispatches the next one meanwhile, and would see their ends late. A context
    manager, within which every compilation of the thread that opened it restarts the clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        """Starts; `now` tells the time in seconds."""
        self._now = now
        self._begin = self._end = now()
        self._owner = threading.current_thread()
        self._waiting = ThreadPoolExecutor(1, "step-clock")

    def __enter__(self) -> StepClock:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
        self._waiting.shutdown(cancel_futures=True)

    def restart(self) -> None:
        """Leaves the time up to now out of the next step: that of an evaluation, a save, a full measurement."""
        self._begin = self._now()

    def watch(self, outputs: Any) -> Future[float]:
        """Takes the outputs of the step just dispatched; the seconds that it took."""
        return self._waiting.submit(self._wait, self._begin, outputs)

    def _wait(self, begin: float, outputs: Any) -> float:
        jax.block_until_ready(outputs)
        begin, self._end = max(begin, self._end), self._now()
        return self._end - begin

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED and threading.current_thread() is self._owner:
            self.restart()
