"""Something was not finite: the first step of it, and the matrices, where not all of them were."""

from __future__ import annotations

import numpy as np

from jaxstab.diagnose.causes.base import Advice, Cause, Kind
from jaxstab.diagnose.history import History
from jaxstab.diagnose.place import Place, named, place_in_stack

WATCHED = ("train/loss", "train/grad_norm", "train/update_norm")
# A fraction of all matrices: this project's choice. Where more of them have entries that aren't finite, the loss was
# not finite first, and no matrix is the place.
SOME = 0.25
MOST_NAMED = 6


def find(history: History) -> list[Cause]:
    by_name, of_matrices = _first_by_name(history), _first_of_matrices(history)
    if not by_name and not of_matrices:
        return []
    step = min([*by_name.values(), *of_matrices])
    names = sorted(name for name, at in by_name.items() if at == step)
    sentence = f"not finite at step {step}: {', '.join(names) or 'entries of the gradient'}"
    places = _matrices_at(history, step)
    total = sum(series.layers for series in history.measured("nonfinite_fraction").values())
    if not places or len(places) > int(SOME * total):
        return [Cause("nonfinite", step=step, last=_last(history, step), evidence=(sentence,), certainty="fact")]
    listed = ", ".join(named(*place) for place in places[:MOST_NAMED])
    evidence = (sentence, f"entries not finite in the gradient of {listed}")
    role, layer = places[0]
    return [Cause("nonfinite", role, layer, None, step, _last(history, step), evidence, certainty="fact")]


def advice(history: History, cause: Cause) -> list[Advice]:
    return [Advice("stability.on_nonfinite=skip", "steps that aren't finite change nothing")]


NONFINITE = Kind(
    "something was not finite",
    find,
    advice,
    remedy="Replay the step with everything measured: main.py diagnose --replay=<step>.",
)


def _last(history: History, first: int) -> int:
    """The last step that wasn't finite."""
    steps, finite = history.scalar("train/finite")
    return int(max(first, np.max(steps[finite == 0], initial=0)))


def _first_by_name(history: History) -> dict[str, int]:
    """{"loss": the first step at which it wasn't finite}, of the metrics of the whole step."""
    steps, finite = history.scalar("train/finite")
    bad = {"the step": steps[finite == 0]}
    for name in WATCHED:
        steps, values = history.scalar(name)
        bad[name.removeprefix("train/")] = steps[~np.isfinite(values)]
    return {name: int(at[0]) for name, at in bad.items() if len(at)}


def _first_of_matrices(history: History) -> list[int]:
    """The first step, of each role, at which a gradient had entries that weren't finite."""
    parts = history.measured("nonfinite_fraction").values()
    return [int(step) for series in parts for step in series.steps[(series.values > 0).any(axis=1)][:1]]


def _matrices_at(history: History, step: int) -> list[Place]:
    """The matrices whose gradient had entries that weren't finite at a step."""
    return [
        (role, place_in_stack(role, int(layer)))
        for role, series in history.measured("nonfinite_fraction").items()
        for layer in np.flatnonzero((series.values[series.steps == step] > 0).any(axis=0))
    ]
