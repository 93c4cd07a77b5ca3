"""The diagnosis of a history: its causes, its spikes, the papers' conditions, and what would be changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from jaxstab.config import from_flat
from jaxstab.diagnose.causes import Advice, Cause, advice_against, find_causes
from jaxstab.diagnose.conditions import Condition, conditions, remedies
from jaxstab.diagnose.history import History, matrices
from jaxstab.diagnose.moved import Spike, flagged, spikes
from jaxstab.stability.definitions import nonfinite
from jaxstab.train.config import Config

WATCHED = ("train/loss", "train/grad_norm", "train/update_norm")


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is said of a run.

    Attributes:
      steps: the first and last step read.
      causes: best borne out first.
      definitions: {"OLMo 2 on loss": flagged steps}.
      nonfinite: {metric: how many values weren't finite}.
      advice: what would be changed; empty where no cause is known.
    """

    workdir: str
    steps: tuple[int, int]
    causes: tuple[Cause, ...]
    definitions: dict[str, tuple[int, ...]]
    nonfinite: dict[str, int]
    spikes: tuple[Spike, ...]
    conditions: tuple[Condition, ...]
    advice: tuple[Advice, ...]

    @property
    def cause(self) -> Cause:
        return self.causes[0]


def diagnosed(history: History) -> Diagnosis:
    """The diagnosis of a history that was read."""
    steps, _ = history.scalar("train/loss")
    causes, judged, flags = find_causes(history), conditions(history), flagged(history)
    return Diagnosis(
        workdir=str(history.workdir),
        steps=(int(steps[0]), int(steps[-1])),
        causes=tuple(causes),
        definitions={name: tuple(map(int, at)) for name, at in flags.items()},
        nonfinite={name: nonfinite(history.scalar(name)[1]) for name in WATCHED if name in history.series},
        spikes=tuple(spikes(history, flags)),
        conditions=tuple(judged),
        advice=tuple(_advice(history, causes[0], judged)),
    )


def _advice(history: History, cause: Cause, judged: Iterable[Condition]) -> list[Advice]:
    """What would be changed: against the cause, then what the papers would, but for what the config has already.

    For a run in which nothing is wrong there is no advice, whatever condition of a paper it is outside of.
    """
    if cause.cause == "none":
        return []
    every = [*advice_against(history, cause), *remedies(judged)]
    by_keys: dict[str, Advice] = {}
    for each in every:
        by_keys.setdefault(each.keys, each)
    return [each for keys, each in by_keys.items() if not _is_so(history, keys)]


def _is_so(history: History, keys: str) -> bool:
    """Whether a run's config has all of "key=value key=value", or an initial scale that is the same by another name."""
    advised = dict(pair.split("=") for pair in keys.split())
    if all(str(history.saved.get(key)) == value for key, value in advised.items()):
        return True
    is_scale = all(key.startswith("init.") for key in advised)
    return (
        is_scale
        and history.config is not None
        and history.table == matrices(from_flat(Config, history.saved | advised))
    )
