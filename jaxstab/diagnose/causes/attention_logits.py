"""Queries and keys of a layer that blew up: changed from outside, or with logits that grew (Wortsman et al. 2023)."""

from __future__ import annotations

import numpy as np

from jaxstab.diagnose.causes.base import Advice, Cause, Kind
from jaxstab.diagnose.causes.weight_changes import Change, weight_changes
from jaxstab.diagnose.history import History

LARGE = 50.0  # this project's choice, early; Wortsman et al. 2023 (arXiv:2309.14322): every run over 1e4 diverged
UNLIKE_OTHERS = 5.0  # times the median head's: this project's choice, so that one head stands out


def find(history: History) -> list[Cause]:
    """Changes of a layer's queries and keys together, then a head whose logits are too large."""
    return [_changed(history, each) for each in history.once(weight_changes) if each.queries_and_keys] + _grown(history)


def advice(history: History, cause: Cause) -> list[Advice]:
    return [
        Advice("model.qk_norm=True", "queries and keys are normalised, so that their norms set no logit"),
        Advice("optimizer.projection.method=qk_clip", "the same without a new layer: weights of a head shrink"),
    ]


ATTENTION_LOGITS = Kind("queries and keys of one layer blew up", find, advice)


def _changed(history: History, change: Change) -> Cause:
    role, layer = change.queries_and_keys or change.places[0]
    head, sentences = _head(history, change.step, layer)
    evidence = (*change.evidence, *sentences)
    return Cause("attention_logits", role, layer, head, change.step, evidence, from_outside=True)


def _logits(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the largest attention logits [n, L, H] of full measurements; empty where there are none."""
    heads = history.measured("max_attention_logit")
    if not heads:
        return np.zeros(0, np.int64), np.zeros((0, 0, 0))
    first = next(iter(heads.values()))
    same = [each for each in heads.values() if np.array_equal(each.steps, first.steps) and each.layers == first.layers]
    return first.steps, np.stack([series.values for series in same], axis=-1)


def _head(history: History, step: int, layer: int | None) -> tuple[int | None, list[str]]:
    """The head of a layer whose logits changed most over a step, by the full measurements around it."""
    steps, logits = _logits(history)
    after = int(np.searchsorted(steps, step))
    if layer is None or after >= len(steps) or layer >= logits.shape[1]:
        return None, []
    now = logits[after, layer]
    before = logits[after - 1, layer] if after else np.median(logits[after], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.abs(np.log(now / before))
    if not np.isfinite(change).any():
        return None, []
    head = int(np.nanargmax(change))
    sentence = f"largest attention logit is {now[head]:.3g} at step {steps[after]}, {before[head]:.3g} before"
    if len(change) == 1:
        return head, [f"its {sentence}"]
    others = np.delete(change, head)
    others = others[np.isfinite(others)]
    beside = f"; the layer's others changed by x{np.exp(np.median(others)):.2g}" if len(others) else ""
    return head, [f"head {head} of layer {layer}: its {sentence}{beside}"]


def _grown(history: History) -> list[Cause]:
    """The first head whose largest logit is over LARGE, and far over the median head's."""
    for step, logits in zip(*_logits(history), strict=True):
        if not np.isfinite(logits).any():
            continue
        layer, head = np.unravel_index(np.nanargmax(logits), logits.shape)
        largest, median = float(logits[layer, head]), float(np.nanmedian(logits))
        if largest > max(LARGE, UNLIKE_OTHERS * median):
            sentence = (
                f"the largest attention logit of head {head} in layer {layer} is {largest:.3g} at step {step}, "
                f"the median head's {median:.3g}"
            )
            return [Cause("attention_logits", "q_proj", int(layer), int(head), int(step), (sentence,))]
    return []
