"""The diagnosis of a history: its causes, its spikes, the papers' conditions, and what would be changed."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
from typing import Any

from jaxstab.config import UserError, from_flat
from jaxstab.diagnose.causes import Advice, Cause, advice_against, find_causes
from jaxstab.diagnose.conditions import Condition, conditions
from jaxstab.diagnose.history import History, matrices
from jaxstab.diagnose.moved import Spike, flagged, spikes
from jaxstab.stability.definitions import nonfinite
from jaxstab.train.config import Config
from jaxstab.train.setup import set_up

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
    causes, flags = find_causes(history), flagged(history)
    return Diagnosis(
        workdir=str(history.workdir),
        steps=(int(steps[0]), int(steps[-1])),
        causes=tuple(causes),
        definitions={name: tuple(map(int, at)) for name, at in flags.items()},
        nonfinite={name: nonfinite(history.scalar(name)[1]) for name in WATCHED if name in history.series},
        spikes=tuple(spikes(history, flags)),
        conditions=tuple(conditions(history)),
        advice=tuple(_advice(history, causes[0])),
    )


def _advice(history: History, cause: Cause) -> list[Advice]:
    """What would be changed against the cause, but for what the config has already and what the program refuses.

    For a run in which nothing is wrong there is no advice, whatever condition of a paper it is outside of.
    """
    return [
        each
        for each in advice_against(history, cause)
        if not _is_so(history, each.keys) and is_accepted(history, each.keys)
    ]


def is_accepted(history: History, keys: str) -> bool:
    """Whether the program takes a run's config with "key=value key=value" changed, where it takes it as it is here."""
    before, after = (json.dumps(flat, default=str) for flat in (history.saved, history.saved | values_of(keys)))
    return not history.saved or _is_refused(before) or not _is_refused(after)


def values_of(keys: str) -> dict[str, Any]:
    """The keys of an advice with their values."""
    return {key: _parsed(value) for key, value in (pair.split("=") for pair in keys.split())}


def _parsed(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


@functools.lru_cache(maxsize=64)
def _is_refused(flat: str) -> bool:
    """Whether the program refuses a flat config, given as JSON."""
    try:
        set_up(from_flat(Config, json.loads(flat)))
    except UserError:
        return True
    return False


def _is_so(history: History, keys: str) -> bool:
    """Whether a run's config has all of "key=value key=value", or an initial scale that is the same by another name."""
    advised = values_of(keys)
    if all(history.saved.get(key) == value for key, value in advised.items()):
        return True
    is_scale = all(key.startswith("init.") for key in advised)
    return (
        is_scale
        and history.config is not None
        and history.table == matrices(from_flat(Config, history.saved | advised))
    )
