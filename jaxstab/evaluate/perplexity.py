"""Perplexity over packed records."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxstab.data import PackedSplit, read_ahead
from jaxstab.model.loss import LossSums
from jaxstab.scale import LocalRows


def evaluate(
    sums_of: Callable[[Any, Any, Any], LossSums],
    weights: Any,
    split: PackedSplit,
    batch_size: int,
    batches: int = 0,
    between: Callable[[], None] = lambda: None,
    local: LocalRows | None = None,
) -> dict[str, float]:
    """Mean cross-entropy and perplexity per token, over the first records of a split.

    Args:
      sums_of: (weights, tokens [B, T+1], valid [B]) -> LossSums.
      weights: effective weights.
      split: read in order; the last batch is padded by rows that don't count.
      batch_size: B.
      batches: how many at most; 0 takes the whole split.
      between: called before each batch; what it raises ends the evaluation.
      local: the rows that this process reads and places on its devices; None has the batches on the host.

    Returns:
      `{"loss": nats, "perplexity": exp(loss)}`.
    """
    records = min(len(split), batches * batch_size) if batches else len(split)

    def padded(start: int) -> tuple[Any, Any]:
        wanted = np.arange(start, start + batch_size)
        wanted = local.of(wanted) if local else wanted
        batch = split.read(np.minimum(wanted, records - 1)), wanted < records
        return (local.placed(batch[0]), local.placed(batch[1])) if local else batch

    total = np.zeros(2)
    for tokens, valid in read_ahead(padded, range(0, records, batch_size)):
        between()
        sums = jax.device_get(sums_of(weights, tokens, valid))
        total += (sums.cross_entropy, sums.targets)
    loss = float(total[0] / total[1])
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
