"""What a cause is, and what its advice is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jaxstab.diagnose.history import History
from jaxstab.diagnose.place import named

# How sure a cause is, the surest first: it was measured itself; an identity that holds in every run was broken; a
# bound that follows from the config was passed; it is unlike what is usual for this run.
CERTAINTIES = ("fact", "identity", "bound", "statistic")
EXACT = ("fact", "identity")


@dataclasses.dataclass(frozen=True)
class Cause:
    """What began a run's trouble.

    Attributes:
      cause: its name in CAUSES.
      role, layer, head: where, as far as the cause has a place and it is known: a matrix by its role, another parameter
        by its path; layers and heads count from 0.
      step, last: the first step that shows it, 0 where none does, and the last.
      evidence: sentences.
      certainty: one of CERTAINTIES.
      cost: nats by which the loss was above its trend from before (see `cost`); None where there is none to go by.
      followed: what came of it, as sentences: causes that it explains.
    """

    cause: str
    role: str | None = None
    layer: int | None = None
    head: int | None = None
    step: int = 0
    last: int = 0
    evidence: tuple[str, ...] = ()
    certainty: str = "statistic"
    cost: float | None = None
    followed: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where, in words: "q_proj of layer 3, head 1"."""
        if self.role is None:
            return f"layer {self.layer}" if self.layer is not None else ""
        return named(self.role, self.layer) + (f", head {self.head}" if self.head is not None else "")

    @property
    def is_exact(self) -> bool:
        return self.certainty in EXACT


@dataclasses.dataclass(frozen=True)
class Advice:
    """A change of the config, "key=value key=value", and why."""

    keys: str
    why: str


class Kind(NamedTuple):
    """A kind of cause: what a file of `jaxstab/diagnose/causes` puts into CAUSES.

    Attributes:
      meaning: the cause in words, after its name.
      find: the causes of this kind that a history bears out, the earliest first.
      advice: what would be changed in the config of a run with such a cause, one instead of the other, the best first.
      remedy: what is done about it beside the config, a sentence; "" where nothing is.
    """

    meaning: str
    find: Callable[[History], list[Cause]]
    advice: Callable[[History, Cause], list[Advice]] = lambda history, cause: []
    remedy: str = ""
