"""Queries and keys of a layer that blew up: changed from outside, or with logits that grew (Wortsman et al. 2023)."""

from __future__ import annotations

import numpy as np

from jaxstab.diagnose.causes.base import Advice, Cause, Kind
from jaxstab.diagnose.causes.weights_changed import changed, off_initial_scale, pair_of, queries_and_keys, told
from jaxstab.diagnose.checks import Event
from jaxstab.diagnose.history import History

PAIR = ("q_proj", "k_proj")
LARGE = 50.0  # this project's choice, early; Wortsman et al. 2023 (arXiv:2309.14322): every run over 1e4 diverged
GROWN = 5.0  # times what the same head began with, and times what the others of its layer grew by: chosen


def find(history: History) -> list[Cause]:
    """Changes of a layer's queries and keys together, then a head whose logits grew too large."""
    changes = [each for each in history.once(changed) if queries_and_keys(each) is not None]
    return _began_off(history) + [_changed(history, each) for each in changes] + _grown(history)


def advice(history: History, cause: Cause) -> list[Advice]:
    """Only against logits that grew: a hand on the weights is not the config's doing."""
    if cause.is_exact or history.saved.get("model.qk_norm"):
        return []
    normed = Advice("model.qk_norm=True", "queries and keys are normalised, so that their norms set no logit")
    clipped = Advice("optimizer.projection.method=qk_clip", "the same without a new layer: weights of a head shrink")
    return [normed, clipped] if history.shrinkable else [normed]


ATTENTION_LOGITS = Kind(
    "queries and keys of one layer blew up",
    find,
    advice,
    remedy="Where weights were changed, go back to the checkpoint before that step.",
)


def _changed(history: History, event: Event) -> Cause:
    layer = queries_and_keys(event)
    head, sentences = _head(history, event.first, event.last, layer)
    evidence = (*told(event), *sentences)
    return Cause("attention_logits", "q_proj", layer, head, event.first, event.last, evidence, certainty="identity")


def _began_off(history: History) -> list[Cause]:
    """Queries and keys of a layer that began off their initial scale together, and farthest of all."""
    off = history.once(off_initial_scale)
    layer = pair_of([place for place, *_ in off]) if off else None
    if layer is None:
        return []
    head, sentences = _head(history, 1, 1, layer)
    evidence = (*(sentence for (role, at), _, sentence in off if at == layer and role in PAIR), *sentences)
    return [Cause("attention_logits", "q_proj", layer, head, 1, 1, evidence, certainty="identity")]


def _logits(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the largest attention logits [n, L, H] of full measurements; empty where there are none."""
    heads = history.measured("max_attention_logit")
    if not heads:
        return np.zeros(0, np.int64), np.zeros((0, 0, 0))
    first = next(iter(heads.values()))
    same = [each for each in heads.values() if np.array_equal(each.steps, first.steps) and each.layers == first.layers]
    return first.steps, np.stack([series.values for series in same], axis=-1)


def _head(history: History, first: int, last: int, layer: int | None) -> tuple[int | None, list[str]]:
    """The head of a layer whose logits changed most over a change, by the full measurements around it."""
    steps, logits = _logits(history)
    before, after = int(np.searchsorted(steps, first)) - 1, int(np.searchsorted(steps, last))
    after = min(after, len(steps) - 1)
    if layer is None or not len(steps) or steps[after] < first or layer >= logits.shape[1]:
        return None, []
    now = logits[after, layer]
    then = logits[before, layer] if before >= 0 else np.median(logits[after], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.abs(np.log(now / then))
    if not np.isfinite(change).any():
        return None, []
    head = int(np.nanargmax(np.where(np.isfinite(change), change, np.nan)))
    sentence = f"largest attention logit is {now[head]:.3g} at step {steps[after]}, {then[head]:.3g} before"
    if len(change) == 1:
        return head, [f"its {sentence}"]
    others = np.delete(change, head)
    others = others[np.isfinite(others)]
    beside = f"; the layer's others changed by x{np.exp(np.median(others)):.2g}" if len(others) else ""
    return head, [f"head {head} of layer {layer}: its {sentence}{beside}"]


def _grown(history: History) -> list[Cause]:
    """The first head over LARGE that grew GROWN times, and as many times as much as the others of its layer."""
    steps, logits = _logits(history)
    if len(steps) < 2 or logits.shape[2] < 2:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = logits / logits[0]
        beside = growth / np.median(growth, axis=2, keepdims=True)
        far = (logits > LARGE) & (np.minimum(growth, beside) > GROWN)
    for at in np.flatnonzero(far.any(axis=(1, 2)))[:1]:
        layer, head = np.argwhere(far[at])[0]
        sentence = (
            f"the largest attention logit of head {head} in layer {layer} is {logits[at, layer, head]:.3g} at step "
            f"{steps[at]}, {growth[at, layer, head]:.3g} times what it began with; the layer's median head grew "
            f"{np.median(growth[at, layer]):.2g} times"
        )
        return [Cause("attention_logits", "q_proj", int(layer), int(head), int(steps[at]), int(steps[-1]), (sentence,))]
    return []
