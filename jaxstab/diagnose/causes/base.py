"""What a cause is, and what its advice is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jaxstab.diagnose.history import History

Place = tuple[str, int | None]  # a matrix: its role, and its layer, None outside of the blocks


@dataclasses.dataclass(frozen=True)
class Cause:
    """What began a run's trouble.

    Attributes:
      cause: its name in CAUSES.
      role, layer, head: where, as far as the cause has a place and it is known; layers and heads count from 0.
      step: the first step that shows it; 0 where none does.
      evidence: sentences.
      from_outside: whether something else than the optimizer changed weights at `step`.
    """

    cause: str
    role: str | None = None
    layer: int | None = None
    head: int | None = None
    step: int = 0
    evidence: tuple[str, ...] = ()
    from_outside: bool = False

    @property
    def place(self) -> str:
        """Where, in words: "q_proj of layer 3, head 1"."""
        parts = [self.role or "", f"layer {self.layer}" if self.layer is not None else ""]
        place = " of ".join(part for part in parts if part)
        return place + (f", head {self.head}" if self.head is not None else "")


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
      advice: what would be changed in the config of a run with such a cause, the best first.
    """

    meaning: str
    find: Callable[[History], list[Cause]]
    advice: Callable[[History, Cause], list[Advice]] = lambda history, cause: []


def place_in_stack(role: str, column: int) -> int | None:
    """The layer of a series' column; None for a matrix outside of the blocks."""
    return None if role.startswith(("embed_", "lm_head")) else column


def named(role: str, layer: int | None) -> str:
    """A matrix in words: "q_proj of layer 3"."""
    return role if layer is None else f"{role} of layer {layer}"
