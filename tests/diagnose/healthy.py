"""Healthy runs of every method: short real runs that nothing was done to, in which no cause may be found.

    python -m tests.diagnose.healthy 60

takes as many combinations of a reparameterization, an update rule, a decay, a clip, a placement, an initial scale, an
embedding and a rate, drawn so that every one that is registered occurs, and says which raised an alarm.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxstab.config import ConfigError
from jaxstab.diagnose import diagnosed
from jaxstab.initialize import SCALES
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.model.placements import PLACEMENTS
from jaxstab.optimize import CLIPS, OPTIMIZERS, SCHEDULES
from jaxstab.optimize.chain import DECAYS
from jaxstab.reparam import METHODS
from tests.diagnose.real import STEPS, TINY, Real, config

CHOICES = {
    "reparam__method": METHODS,
    "optimizer__rule__method": OPTIMIZERS,
    "optimizer__decay__method": DECAYS,
    "optimizer__clip__method": CLIPS,
    "optimizer__schedule__method": SCHEDULES,
    "model__norm_placement__method": PLACEMENTS,
    "model__embedding__method": EMBEDDINGS,
    "init__method": SCALES,
}
RATES = (3e-4, 1e-3, 3e-3)


def combinations(seed: int) -> Iterator[dict[str, Any]]:
    """Combinations without an end; each choice goes through all that is registered, in an order of its own."""
    dice = np.random.default_rng(seed)
    decks: dict[str, list[str]] = {key: [] for key in CHOICES}
    while True:
        for key, registry in CHOICES.items():
            decks[key] = decks[key] or list(dice.permutation(list(registry)))
        drawn: dict[str, Any] = {key: str(deck.pop()) for key, deck in decks.items()}
        yield drawn | {"optimizer__learning_rate": float(dice.choice(RATES)), "train__seed": int(dice.integers(1000))}


def alarms(changes: dict[str, Any], steps: int = STEPS) -> list[str] | None:
    """The causes found in a healthy run, also as it stood halfway; None where the choices don't go together."""
    try:
        run = Real(config(**(TINY | changes)))
    except ConfigError:
        return None
    told = []
    for count in (steps, steps // 2):
        diagnosis = diagnosed(run.run(count))
        told += [f"{each.cause} of {each.place} at {each.step}: {each.evidence[0]}" for each in diagnosis.causes]
        told += [f"advice {each.keys}" for each in diagnosis.advice]
    return [each for each in told if not each.startswith("none")]


def main(count: int) -> int:
    """Takes `count` combinations that go together, and returns 1 where one raised an alarm."""
    started, done, raised = time.monotonic(), 0, 0
    print(f"{count} healthy runs of {STEPS} steps, some 10 s each", flush=True)
    for changes in combinations(0):
        if done == count:
            break
        told = alarms(changes)
        done += told is not None
        for each in told or ():
            raised += 1
            print(f"{changes}\n  {each}", flush=True)
    print(f"{count} healthy runs in {time.monotonic() - started:.0f} s, {raised} alarms")
    return int(bool(raised))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
