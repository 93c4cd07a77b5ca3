"""What is measured in a run, and what is done about a spike."""

from __future__ import annotations

import dataclasses

from jaxstab.config import ConfigError, Options, Range, option
from jaxstab.stability.spikes import QUANTITIES, RULES

INSTRUMENTS = ("curvature", "eigenvalue", "entropy", "jacobians")  # of full measurements, each by choice
RESPONSES = ("log", "skip", "rollback", "stop")


@dataclasses.dataclass(frozen=True)
class StabilityConfig(Options):
    """Measurements, and the responses to spikes and to values that aren't finite."""

    measure: str = option(
        "light",
        "light: every matrix's norms, update ratios and gradients, and TEV, each step; full: also, now and then, what "
        "needs passes of its own (docs/stability.md); off: loss and global norms alone.",
        choices=("off", "light", "full"),
    )
    measure_every: int = option(500, "Steps between two full measurements.", Range(1))
    instruments: tuple[str, ...] = option(
        (),
        f"What full measurements have beside the rest, of {', '.join(INSTRUMENTS)}: each takes as long as some steps "
        "(docs/stability.md).",
    )
    rule: str = option(
        "skip_step",
        "What a spike is: above 6 standard deviations of the last 128 values, or 7 of the last 1,000.",
        choices=tuple(RULES),
    )
    watch: tuple[str, ...] = option(
        ("loss", "grad_norm"), f"Quantities that are watched for spikes, of {', '.join(QUANTITIES)}."
    )
    on_spike: str = option(
        "log",
        "log takes the step all the same; skip leaves it out; rollback goes back to a checkpoint and past the batches; "
        "stop ends the run with the state before it. Of an update_norm it is known too late for skip.",
        choices=RESPONSES,
    )
    on_nonfinite: str = option(
        "stop",
        "The same for a loss or gradient that isn't finite; with log, the weights then aren't finite either. An update "
        "that isn't finite is known too late to be left out: with skip and stop the run ends, and goes on from its "
        "last checkpoint.",
        choices=RESPONSES,
    )
    max_skips: int = option(
        4,
        "Steps skipped in a row. Then a spike is taken as a new level, and a value that isn't finite stops the run.",
        Range(1),
    )
    rollback_steps: int = option(
        100, "Fewest steps between a spike and the checkpoint that the run goes back to (PaLM: 100).", Range(1)
    )
    skip_batches: int = option(
        200, "Batches left out after a roll-back, from that of the spike on (PaLM: 200 to 500).", Range(1)
    )
    skip_before: int = option(0, "Batches before the spike's that are left out too.", Range(0))
    max_rollbacks: int = option(3, "Roll-backs in a run, after which it stops.", Range(0))
    rollback_learning_rate: float = option(
        1.0, "Factor on the learning rate for a while after a roll-back.", Range(above=0)
    )
    rollback_max_norm: float = option(
        0.0,
        "Largest global gradient norm for a while after a roll-back, before the usual clipping; 0 sets none.",
        Range(0),
    )
    rollback_while: int = option(
        500, "Steps from the checkpoint on in which rollback_learning_rate and rollback_max_norm hold.", Range(0)
    )
    incidents: int = option(
        5, "Incidents whose evidence is kept, each with its checkpoint; later ones are counted.", Range(0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        other = [name for name in self.instruments if name not in INSTRUMENTS]
        if other:
            raise ConfigError(f"stability.instruments has {other[0]!r}, which is not one of: {', '.join(INSTRUMENTS)}")
        if self.instruments and self.measure != "full":
            raise ConfigError(
                f"stability.instruments={self.instruments} belong to full measurements: set stability.measure=full"
            )
        strange = [name for name in self.watch if name not in QUANTITIES]
        if strange:
            raise ConfigError(f"stability.watch has {strange[0]!r}, which is not one of: {', '.join(QUANTITIES)}")

    @property
    def rolls_back(self) -> bool:
        return "rollback" in (self.on_spike, self.on_nonfinite)
