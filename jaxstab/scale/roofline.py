"""The time that a step takes at least, from what it computes, reads and sends, and what a chip does at best."""

from __future__ import annotations

from typing import NamedTuple

from jaxstab.scale.chips import Slice


class Work(NamedTuple):
    """What one device does in a step.

    Attributes:
      flops: of its matrix products, those computed again included.
      accessed: bytes that it reads and writes in its memory.
      sent: bytes that it sends to other devices.
    """

    flops: float
    accessed: float
    sent: float


class Seconds(NamedTuple):
    """What each kind of a device's work takes by itself, in seconds."""

    compute: float
    memory: float
    interconnect: float

    @property
    def least(self) -> float:
        """Where all goes on at once: the roofline."""
        return max(self)

    @property
    def most(self) -> float:
        """Where nothing goes on at once."""
        return sum(self)

    @property
    def bound(self) -> str:
        """The kind of work that takes longest."""
        return max(self._asdict().items(), key=lambda item: item[1])[0]


def seconds(work: Work, slice_: Slice) -> Seconds:
    """The times of a device's work at the peak of its share of a chip (Williams et al. 2009, for three resources)."""
    chip = slice_.chip
    sends = chip.sends(slice_.chips)
    compute, memory = work.flops * chip.devices / chip.peak, work.accessed * chip.devices / chip.bandwidth
    return Seconds(compute, memory, work.sent * chip.devices / sends if work.sent else 0.0)
