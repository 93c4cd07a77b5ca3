"""What an evaluation comes to: values with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Result(NamedTuple):
    """One value.

    Attributes:
      task, metric: by the names of lm-evaluation-harness.
      value: perplexities as they are, accuracies as shares.
      stderr: standard error over the task's documents; NaN where it has none.
    """

    task: str
    metric: str
    value: float
    stderr: float = math.nan

    def as_json(self) -> dict[str, Any]:
        """The value with its names; null where there is no standard error."""
        return self._asdict() | {"stderr": None if math.isnan(self.stderr) else self.stderr}


def ratio(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """Σ values / Σ weights and its standard error over pairs, of which there are several; both float64.

    Source: Cochran 1977, Sampling techniques, equation 6.13 (the linearised ratio estimator).
    """
    y, w = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    mean = y.sum() / w.sum()
    residuals = y - mean * w
    scale = len(y) / max(len(y) - 1, 1)
    return float(mean), math.sqrt(scale * float(residuals @ residuals)) / float(w.sum()) if len(y) > 1 else math.nan


def perplexity(nats: float, stderr: float) -> tuple[float, float]:
    """exp of a mean of nats, and its standard error to first order."""
    value = math.exp(min(nats, 700.0))
    return value, value * stderr


def table(results: Sequence[Result]) -> str:
    """Results as lines of text, a value and its standard error each."""
    names = [(result.task, result.metric) for result in results]
    widths = [max(map(len, column)) for column in zip(*names, strict=True)]
    lines = []
    for result in results:
        error = "" if math.isnan(result.stderr) else f" ± {result.stderr:.4f}"
        lines.append(f"{result.task:{widths[0]}}  {result.metric:{widths[1]}}  {result.value:.4f}{error}")
    return "\n".join(lines)
