"""Weights that something else than the optimizer wrote to: a matrix, rows of it, one entry, a gain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxstab.diagnose.causes.bad_resume import restored_steps
from jaxstab.diagnose.causes.base import Cause, Kind
from jaxstab.diagnose.checks import Event, broken_weights, together
from jaxstab.diagnose.history import History, Series
from jaxstab.diagnose.place import Place, named, place_in_stack
from jaxstab.table import Row

BY_CHANCE = 5.0  # standard deviations of the norm of a drawn matrix, 1/√(2n) of it, and 1% for rounding: chosen
BY_LAYER = 10.0  # robust standard deviations over layers, where no initial scale is known: chosen
LEAST = 0.25  # and this much of the logarithm: chosen; a product of two small factors is off by 5% by chance
DRIFT, LOG_Z = 10, 1.0  # steps and nats: chosen; what changes the head so long and moves log Z so far is a drift of it
MOST_SENTENCES = 4


def find(history: History) -> list[Cause]:
    """What began off its initial scale, then every change from outside but that of a layer's queries and keys."""
    changes = [
        each for each in history.once(changed) if queries_and_keys(each) is None and not drifts_logits(history, each)
    ]
    off = [each for each in history.once(off_initial_scale) if each[0][0] != "embed_tokens" or each[1] > 1]
    is_own = off and pair_of([place for place, *_ in off]) is None
    return ([_began_off(off)] if is_own else []) + [_cause(each) for each in changes]


def changed(history: History) -> list[Event]:
    """Changes of weights from outside, but for those of a whole state at once."""
    restored = history.once(restored_steps)
    return together(each for each in history.once(broken_weights) if each.step not in restored)


def queries_and_keys(event: Event) -> int | None:
    """The layer whose queries and keys changed together, and most of all; None where it is another change."""
    return pair_of(event.places)


def drifts_logits(history: History, event: Event) -> bool:
    """Whether an event is lm_head alone, for DRIFT steps or more, in which log Z moved by more than LOG_Z."""
    if set(event.places) != {("lm_head", None)} or event.steps < DRIFT:
        return False
    steps, log_z = history.scalar("train/log_z")
    within = log_z[(steps >= event.first - 1) & (steps <= event.last)]
    return len(within) > 1 and bool(abs(within[-1] - within[0]) > LOG_Z)


def pair_of(places: Sequence[Place]) -> int | None:
    """The layer of the first place, where that is queries or keys, and the other of both is among the places too."""
    role, layer = places[0]
    pair = {"q_proj": "k_proj", "k_proj": "q_proj"}.get(role)
    return layer if pair and (pair, layer) in places else None


def off_initial_scale(history: History) -> list[tuple[Place, float, str]]:
    """Matrices and gains that began off their scale: place, by what factor, a sentence; the farthest first."""
    off: dict[Place, tuple[Place, float, str]] = {}
    for row_of, by_name in (
        (history.stored, history.norms),
        (history.table, history.measured("norm_effective")),
    ):
        for name, series in by_name.items():
            if series.steps[0] == 1:
                for column, factor, what in _off(row_of.get(name), name, series):
                    place = (name, place_in_stack(name, column))
                    off[place] = (place, factor, f"{named(*place)} began with {factor:.3g} times the norm {what}")
    return sorted(off.values(), key=lambda each: -_size(each[1]))


def _size(factor: float) -> float:
    return abs(math.log(factor)) if factor > 0 else math.inf


def _off(row: Row | None, name: str, series: Series) -> list[tuple[int, float, str]]:
    """Columns that begin with another norm than expected: which, by what factor, and what was expected."""
    expected, most, what = _expected_norm(row, name, series)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = series.values[0] / expected
        far = np.flatnonzero(np.abs(np.log(factors)) > most)
    return [(int(column), float(factors[column]), what) for column in far]


def _expected_norm(row: Row | None, name: str, series: Series) -> tuple[np.ndarray, float, str]:
    """The norm at initialization, the largest usual |log| of a norm's ratio to it, and words for its origin."""
    if row is not None and not row.is_matrix:
        return _given(row, series.layers), 1e-3, "that it is given"
    if row is not None and row.std is not None and np.all(np.asarray(row.std) > 0):
        return _drawn(row, series.layers)
    if row is not None:
        return np.full(series.layers, np.nan), math.inf, ""
    median = float(np.median(series.values[0]))
    if series.layers < 3 or not 0 < median < math.inf or "/" in name:
        return np.full(series.layers, np.nan), math.inf, ""
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = float(np.median(np.abs(np.log(series.values[0] / median))))
    return np.full(series.layers, median), LEAST + BY_LAYER * spread, "that the median layer has"


def _given(row: Row, layers: int) -> np.ndarray:
    """The norm that a gain begins with; NaN for biases and gates, which a phase before the first step may set."""
    size = math.prod(row.shape[int(row.stacked) :])
    value = row.value if row.role == "norm" and row.value else math.nan
    return np.broadcast_to(np.asarray(value, float) * math.sqrt(size), (layers,))


def _drawn(row: Row, layers: int) -> tuple[np.ndarray, float, str]:
    size = row.fan_in * row.fan_out
    expected = np.broadcast_to(np.asarray(row.std, float) * math.sqrt(size), (layers,))
    return expected, 0.01 + BY_CHANCE / math.sqrt(2 * size), "that its initial scale gives"


def _began_off(off: list[tuple[Place, float, str]]) -> Cause:
    (role, layer), _, _ = off[0]
    sentences = tuple(sentence for _, _, sentence in off[:MOST_SENTENCES])
    return Cause("weights_changed", role, layer, None, 1, 1, sentences, certainty="identity")


def _cause(event: Event) -> Cause:
    role, layer = event.places[0]
    return Cause("weights_changed", role, layer, None, event.first, event.last, told(event), certainty="identity")


def told(event: Event) -> tuple[str, ...]:
    """The sentences of an event: its first breaks, how many there were, and how long it went on."""
    sentences = [each.sentence for each in event.breaks[:MOST_SENTENCES]]
    if len(event.breaks) > MOST_SENTENCES:
        sentences.append(f"{len(event.breaks)} in all at that step")
    if event.steps > 1:
        sentences.append(f"it goes on at {event.steps} of the steps from {event.first} to {event.last}")
    return tuple(sentences)


WEIGHTS_CHANGED = Kind(
    "weights were changed by something else than their update",
    find,
    remedy="Go back to the checkpoint before that step; look for what writes to the parameters, or for faulty memory.",
)
