"""An embedding that began too small: each branch then outweighs the shortcut (Takase et al. 2025, Spike No More)."""

from __future__ import annotations

import math

import numpy as np

from jaxstab.diagnose.causes.base import Advice, Cause, Kind
from jaxstab.diagnose.causes.weights_changed import off_initial_scale
from jaxstab.diagnose.history import History

# A fraction of the median std of the matrices that read the embedding: this project's choice. The paper asks for an
# embedding's std close to 1, and doesn't say how far below that harms.
SMALL = 0.1
READERS = ("q_proj", "k_proj", "v_proj", "up_proj")


def find(history: History) -> list[Cause]:
    """Judges the embedding by its own initial scale, and by the matrices that read it."""
    below = [
        sentence
        for place, factor, sentence in history.once(off_initial_scale)
        if place == ("embed_tokens", None) and factor < 1
    ]
    beside = _beside_its_readers(history)
    if not below and not beside:
        return []
    certainty = "identity" if below else "bound"
    return [Cause("embedding_scale", "embed_tokens", None, None, 1, 1, (*below, *beside), certainty=certainty)]


def advice(history: History, cause: Cause) -> list[Advice]:
    return [
        Advice("model.embedding.method=unit", "the embedding enters with a standard deviation of 1"),
        Advice("model.embedding.method=scaled", "times sqrt(d), as in Spike No More"),
    ]


EMBEDDING_SCALE = Kind("the embedding began too small", find, advice)


def _beside_its_readers(history: History) -> list[str]:
    """A sentence where the embedding's standard deviation began far below that of the matrices that read it."""
    norms, table = history.measured("norm_effective"), history.table
    if "embed_tokens" not in table or "embed_tokens" not in norms or norms["embed_tokens"].steps[0] != 1:
        return []
    if history.normalizes_embedding:
        return []

    def std(role: str) -> float:
        return float(np.median(norms[role].values[0]) / math.sqrt(table[role].fan_in * table[role].fan_out))

    readers = [std(role) for role in READERS if role in norms and role in table]
    embedding = std("embed_tokens")
    if not readers or not embedding <= SMALL * np.median(readers):
        return []
    return [
        f"the embedding began with a standard deviation of {embedding:.3g}, the matrices that read it with "
        f"{np.median(readers):.3g}: each branch then outweighs the shortcut, and an update is large beside a row"
    ]
