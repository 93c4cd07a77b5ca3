"""One of several processes of a run: what they tell each other, and how they end together."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxstab.config import EndedElsewhere, UserError
from jaxstab.scale.cluster import Place
from jaxstab.scale.hosts import Hosts, T
from jaxstab.scale.peers import Message, Peer

GRACE = 5.0  # seconds in which all may come to the same error, before one of them ends the others

GOES_ON = "the same command goes on from the last checkpoint"


class Many(Hosts):
    """One of several processes: a thread of it talks with process 0 or, of process 0, with all others.

    The thread ends the process when another one is lost or has failed: the main thread may be inside a collective
    operation, which would wait for ever.
    """

    def __init__(
        self,
        place: Place,
        peers: dict[int, Peer],
        names: list[str],
        silence: float,
        leave: Callable[[str], None] | None = None,
    ):
        """Starts the thread.

        Args:
          place: of this process.
          peers: the connections, by number.
          names: of all hosts.
          silence: seconds after which a process is lost.
          leave: ends the process, with a line.
        """
        self.process, self.processes, self.names = place.process, place.processes, names
        self._peers, self._silence, self._beat = peers, silence, min(5.0, silence / 5)
        self._leave = leave or _leave
        self._changed = threading.Condition()
        self._values: dict[int, Any] = {}  # of the present exchange, at process 0
        self._replies: list[Any] = []
        self._boundaries, self._held, self._counts = 0, False, dict[int, int]()
        self._stop: tuple[int, int] | None = None  # the signal, and the boundary at which all stop
        self._signal: int | None = None
        self._asked = self._closing = self._failing = False
        self._end: str | None = None
        self._gone: set[int] = set()
        self._answers: dict[str, Callable[[int, Any], None]] = {
            "beat": lambda *_: None,  # its arrival is all that it says
            "value": self._take_value,
            "reply": self._take_reply,
            "ask": self._take_ask,
            "hold": self._take_hold,
            "count": self._take_count,
            "stop": self._take_stop,
            "failed": self._take_failed,
            "end": self._take_end,
        }
        self._thread = threading.Thread(target=self._watch, name="hosts", daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return self._named(self.process)

    def _named(self, number: int) -> str:
        return f"process {number} of {self.processes} ({self.names[number]})"

    # What all do together.

    def told(self, make: Callable[[], T]) -> T:
        return self._exchange(make() if self.writes else None, lambda values: values[0])

    def in_turn(self, make: Callable[[], T]) -> T:
        first = make() if self.writes else None
        self.meet()
        return make() if first is None else first

    def meet(self) -> None:
        self._exchange(None, lambda values: None)

    def agree(self, what: str, values: Mapping[str, Any]) -> None:
        difference = self._exchange(dict(values), lambda values: self._difference(what, values))
        if difference:
            raise UserError(difference)

    def _difference(self, what: str, values: list[dict[str, Any]]) -> str:
        for number, theirs in enumerate(values):
            ours = values[0]
            keys = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
            if keys:
                listed = "; ".join(f"{key} (there {theirs.get(key)!r}, here {ours.get(key)!r})" for key in sorted(keys))
                return f"{self._named(number)} has another {what} than process 0 ({self.names[0]}): {listed}"
        return ""

    def any_of(self, reason: str) -> str:
        def first(reasons: list[str]) -> str:
            return next((f"{self._named(n)}: {each}" if n else each for n, each in enumerate(reasons) if each), "")

        return self._exchange(reason, first)

    def _exchange(self, value: Any, reduce: Callable[[list[Any]], Any]) -> Any:
        """Gives a value to process 0, and takes from there what it makes of the values of all; all are JSON."""
        value = json.loads(json.dumps(value))
        with self._changed:
            if self.process:
                self._peers[0].send(value=value)
                self._changed.wait_for(lambda: self._replies)
                return self._replies.pop()
            self._changed.wait_for(lambda: len(self._values) == len(self._peers))
            values, self._values = self._values, {}
        reply = json.loads(json.dumps(reduce([value, *(values[number] for number in sorted(values))])))
        self._tell(reply=reply)
        return reply

    def stop(self, number: int | None) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: not self._held)
            self._boundaries += 1
            if number is not None and not self._asked:
                self._asked = True
                self._ask(number) if self.writes else self._peers[0].send(ask=number)
                self._changed.wait_for(lambda: not self._held)
            return self._stop[0] if self._stop and self._boundaries >= self._stop[1] else None

    # The thread, and what it does about a message.

    def _watch(self) -> None:
        """Listens, and lets itself be heard, until the end."""
        heard = dict.fromkeys(self._peers, time.monotonic())
        beaten = 0.0
        with selectors.DefaultSelector() as selector:
            for number, peer in self._peers.items():
                peer.connection.settimeout(self._silence)
                selector.register(peer.connection, selectors.EVENT_READ, number)
            while not self._closing:
                for key, _ in selector.select(self._beat / 4):
                    messages = self._peers[key.data].receive()
                    if messages is None:
                        selector.unregister(key.fileobj)
                        del heard[key.data]
                        self._take_farewell(key.data)
                        continue
                    heard[key.data] = time.monotonic()
                    for message in messages:
                        self._take(key.data, message)
                now = time.monotonic()
                for number in (number for number, at in heard.items() if now - at > self._silence):
                    self._lost(number, f"has not been heard of for {self._silence:g} s; {GOES_ON}")
                if now - beaten >= self._beat:
                    beaten = now
                    self._tell(beat=0)

    def _take(self, number: int, message: Message) -> None:
        with self._changed:
            for kind, value in message.items():
                self._answers[kind](number, value)
            self._changed.notify_all()

    def _take_value(self, number: int, value: Any) -> None:
        self._values[number] = value

    def _take_reply(self, _: int, value: Any) -> None:
        self._replies.append(value)

    def _take_ask(self, _: int, signal: int) -> None:
        self._ask(signal)

    def _ask(self, signal: int) -> None:
        """Holds all at their next boundary and asks how many they have passed: all stop at the one after the last."""
        if self._signal is None:
            self._signal, self._held, self._counts = signal, True, {0: self._boundaries}
            self._tell(hold=0)

    def _take_hold(self, _: int, value: Any) -> None:
        self._held = True
        self._peers[0].send(count=self._boundaries)

    def _take_count(self, number: int, count: int) -> None:
        self._counts[number] = count
        if len(self._counts) == self.processes:
            stop = [self._signal, max(self._counts.values()) + 1]
            self._tell(stop=stop)
            self._take_stop(0, stop)

    def _take_stop(self, _: int, value: Any) -> None:
        self._stop, self._held = (value[0], value[1]), False

    def _take_failed(self, number: int, reason: str) -> None:
        """Process 0 may come to the same error; if it doesn't, this one ends all."""
        threading.Timer(GRACE, self._lost, (number, f"has ended: {reason}")).start()

    def _take_farewell(self, number: int) -> None:
        with self._changed:
            self._gone.add(number)
            self._changed.notify_all()
        self._lost(number, f"has ended; {GOES_ON}")

    def _take_end(self, _: int, reason: str) -> None:
        self._end = reason
        if not self._failing:
            threading.Timer(0 if reason.startswith("process ") else GRACE, self._leave_for, (reason,)).start()

    def _leave_for(self, reason: str) -> None:
        if not (self._failing or self._closing):
            told = reason if reason.startswith("process ") else f"{self._named(0)} has ended: {reason}"
            self._leave(f"{self}: {told}")

    def _lost(self, number: int, what: str) -> None:
        """Ends all for one that is lost."""
        if self._closing or self._failing or self._end is not None:
            return
        reason = f"{self._named(number)} {what}"
        self._end = reason
        self._part(reason)
        time.sleep(1 if self.writes else 0)
        self._leave(f"{self}: {reason}")

    def _tell(self, **message: Any) -> None:
        for peer in self._peers.values():
            peer.send(**message)

    def _part(self, reason: str) -> None:
        """Process 0 tells the others why it ends; closed at once, a connection would lose the line."""
        if self.writes:
            self._tell(end=reason)
            for peer in self._peers.values():
                with contextlib.suppress(OSError):
                    peer.connection.shutdown(socket.SHUT_WR)

    # The end.

    def close(self) -> None:
        """Ends well: all have come here."""
        self.meet()
        self._closing = True
        self._thread.join()

    def fail(self, error: BaseException) -> None:
        """Tells the others of an error; raises EndedElsewhere where process 0 has the same one and tells it."""
        if isinstance(error, jax.errors.JaxRuntimeError):  # maybe for want of a process, of which the thread will hear
            time.sleep(self._silence + 2 * self._beat)
        reason = str(error) or type(error).__name__
        with self._changed:
            self._failing = True
            if self.writes:
                self._part(reason)
                self._changed.wait_for(lambda: len(self._gone) == len(self._peers), 2 * GRACE)
                return
            self._peers[0].send(failed=reason)
            self._changed.wait_for(lambda: self._end is not None, GRACE + self._beat)
        if self._end == reason:
            raise EndedElsewhere(getattr(error, "exit_code", 1)) from error


def _leave(line: str) -> None:
    """Ends this process at once, whatever its other threads wait for."""
    show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
    os.write(2, f"{show_cursor}error: {line}\n".encode())
    os._exit(1)
