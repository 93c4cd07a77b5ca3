"""Connections between the processes of a run, and the roll call by which they come about.

Process 0 listens where JAX's own coordination service will be, until all have called: so that it can be told who is
missing, which JAX's service doesn't tell. The connections stay, and carry JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import Any

from jaxstab.config import UserError
from jaxstab.scale.cluster import Place

RETRY = 0.2  # seconds
HELLO = 10.0  # seconds that a new connection may take to say who it is
LARGEST = 1 << 24  # bytes of a line

Message = dict[str, Any]


class Peer:
    """A connection that carries messages as lines of JSON."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self._lock = threading.Lock()
        self._rest = b""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, **message: Any) -> bool:
        """Sends a message, from any thread; whether it could be sent."""
        with self._lock, contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")
            return True
        return False

    def receive(self) -> list[Message] | None:
        """Waits for something to arrive, and returns the messages that are complete; None where the other has gone."""
        try:
            arrived = self.connection.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + arrived).split(b"\n")
        if not arrived or len(self._rest) > LARGEST:
            return None
        try:
            return [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError):  # not one of ours
            return None

    def first(self, deadline: float) -> Message | None:
        """The first message of a connection; None where none has come by `deadline`, of `time.monotonic`.

        The other waits for an answer to it, or for its turn, and sends nothing else with it.
        """
        while (left := deadline - time.monotonic()) > 0:
            self.connection.settimeout(left)
            messages = self.receive()
            if messages is None:
                return None
            if messages:
                return messages[0]
        return None

    def close(self) -> None:
        self.connection.close()


def call_roll(place: Place, seconds: float, name: str) -> tuple[dict[int, Peer], list[str]]:
    """Connects the processes of a run: every one with process 0.

    Args:
      place: of this process.
      seconds: how long all wait for the last one.
      name: of this process's host.

    Returns:
      The connections by the other's number, and the hosts' names.

    Raises:
      UserError: some haven't started in time; the message names them.
    """
    deadline = time.monotonic() + seconds
    return _gather(place, deadline, seconds, name) if place.process == 0 else _report(place, deadline, seconds, name)


def _gather(place: Place, deadline: float, seconds: float, name: str) -> tuple[dict[int, Peer], list[str]]:
    peers: dict[int, Peer] = {}
    names = {0: name}
    with _listening(place, deadline) as server:
        while len(names) < place.processes and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                peer = Peer(server.accept()[0])
            except OSError:  # it took too long
                continue
            hello = peer.first(min(deadline, time.monotonic() + HELLO)) or {}
            if not {"process", "processes", "name"} <= hello.keys():
                peer.close()
                continue
            wrong = _wrong(hello, place, names)
            if wrong:
                _end(peers, wrong, peer)
            peers[hello["process"]], names[hello["process"]] = peer, hello["name"]
    missing = [number for number in range(place.processes) if number not in names]
    if missing:
        _end(peers, f"{_listed(missing)} of {place.processes} {_have(missing)} not started within {seconds:g} s")
    ordered = [names[number] for number in range(place.processes)]
    for peer in peers.values():
        peer.send(names=ordered)
    return peers, ordered


def _wrong(hello: Message, place: Place, names: dict[int, str]) -> str:
    """Why a process can't take part; "" where it can."""
    number, name = hello["process"], hello["name"]
    if hello["processes"] != place.processes:
        return (
            f"{name} was started as one of {hello['processes']} processes, and process 0 ({names[0]}) as one of "
            f"{place.processes}: give all the same hosts.processes"
        )
    if number in names:
        return f"process {number} was started twice, on {names[number]} and {name}: give each its own hosts.process"
    return ""


def _end(peers: dict[int, Peer], reason: str, *more: Peer) -> None:
    for peer in (*peers.values(), *more):
        peer.send(end=reason)
    time.sleep(RETRY)  # for the lines to arrive before the connections close
    raise UserError(reason)


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"process{'es' * (len(numbers) > 1)} {shown}"


def _have(numbers: list[int]) -> str:
    return "have" if len(numbers) > 1 else "has"


def _listening(place: Place, deadline: float) -> socket.socket:
    """A socket that listens at the coordinator's port, which a run that is ending may still have."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    while True:
        try:
            return socket.create_server(("", place.port), family=family, dualstack_ipv6=dual, backlog=place.processes)
        except OSError as error:
            if time.monotonic() + RETRY > deadline:
                raise UserError(
                    f"process 0 can't listen at port {place.port} ({error.strerror}): give another hosts.coordinator"
                ) from error
            time.sleep(RETRY)


def _report(place: Place, deadline: float, seconds: float, name: str) -> tuple[dict[int, Peer], list[str]]:
    where = f"{place.host}:{place.port}"
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            peer = Peer(socket.create_connection((place.host, place.port), deadline - time.monotonic()))
            peer.send(process=place.process, processes=place.processes, name=name)
            answer = peer.first(deadline + HELLO) or {}
            if "end" in answer:
                raise UserError(answer["end"])
            if "names" in answer:
                return {0: peer}, answer["names"]
            peer.close()
        time.sleep(RETRY)
    raise UserError(f"process 0 doesn't answer at {where} within {seconds:g} s: is it running, and can it be reached?")
