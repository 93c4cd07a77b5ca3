"""The processes of a run: what they decide together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Hosts:
    """The one process of a run, which decides by itself. Every method is called by all processes, in the same order."""

    process, processes = 0, 1

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's files, and talks."""
        return self.process == 0

    def told(self, make: Callable[[], T]) -> T:
        """What process 0 makes, as JSON has it."""
        return make()

    def in_turn(self, make: Callable[[], T]) -> T:
        """What each process makes, process 0 before the others: what it leaves on a shared disk is there for them."""
        return make()

    def meet(self) -> None:
        """Returns when all have come here."""

    def agree(self, what: str, values: Mapping[str, Any]) -> None:
        """Raises UserError unless all have the same values; it names the process and the keys."""

    def any_of(self, reason: str) -> str:
        """The first reason that isn't empty."""
        return reason

    def stop(self, number: int | None) -> int | None:
        """The signal by which all stop at this boundary, or None; takes the one that has come to this process."""
        return number


ALONE = Hosts()
