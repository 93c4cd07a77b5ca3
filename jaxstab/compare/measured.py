"""What the measurements of a run came to: a few numbers for its row, from the series that its workdir keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxstab.stability.definitions import DEFINITIONS

Series = tuple[np.ndarray, np.ndarray]  # steps [n], and values [n, layers]
Lines = Sequence[Mapping[str, Any]]
MLP = ("up_proj", "down_proj")
TOKENS = ("embed_tokens", "lm_head")


def series_of(lines: Lines, name: str) -> Series:
    """A metric of metrics.jsonl as a series of one layer."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    return np.array([step for step, _ in points], int), np.array([[value] for _, value in points], float).reshape(-1, 1)


def gradient_variance(measured: Mapping[str, Series], name: str = "gradient_variance") -> Series:
    """The variance over micro-batches at each full measurement, a column for each block: the mean of its matrices."""
    prefix = f"stability/{name}/"
    each = [series for key, series in measured.items() if key.startswith(prefix) and series[1].shape[1] > 1]
    if not each:
        return np.zeros(0, int), np.zeros((0, 1))
    return each[0][0], np.mean([values for _, values in each], axis=0)


def measures(lines: Lines, measured: Mapping[str, Series]) -> dict[str, float]:
    """The numbers of a row that come from measurements; those that weren't measured are left out.

    - update_ratio_<role>: of the last block, the median over steps (Nishida et al. 2024, Figure 1)
    - norm_<role>: of the last block, effective, at the end (their Figure 3)
    - tev_<role>: mean token embedding variability at the end (Chung et al. 2024)
    - gradient_variance, gradient_entry_variance: means over blocks and matrices at the last full measurement
    - gradient_noise_scale: the median over the full measurements
    - max_attention_logit: the largest of all; attention_entropy: the least of a head at the end
    - stable_rank: the least of a matrix at the end; shortcut_std: after the last block, at the end
    - jacobian: the largest spectral norm of a branch with its shortcut, at the end
    - clipped: the share of steps whose gradient was over the threshold
    """
    numbers = {
        **{f"update_ratio_{role}": _median(measured, f"update_ratio/{role}") for role in MLP},
        **{f"norm_{role}": _last(measured, f"norm_effective/{role}") for role in MLP},
        **{f"tev_{role}": _end(series_of(lines, f"stability/tev_mean/{role}")[1]) for role in TOKENS},
        **{
            name: _end(gradient_variance(measured, name)[1], np.mean)
            for name in ("gradient_variance", "gradient_entry_variance")
        },
        "gradient_noise_scale": _of(series_of(lines, "stability/gradient_noise_scale")[1], np.median),
        "max_attention_logit": _over(measured, "max_attention_logit", np.max, at_end=False),
        "attention_entropy": _over(measured, "attention_entropy", np.min),
        "stable_rank": _over(measured, "stable_rank", np.min),
        "shortcut_std": _last(measured, "shortcut_std/mlp"),
        "jacobian": _over(measured, "jacobian", np.max),
        "clipped": _of(series_of(lines, "train/clipped")[1], np.mean),
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def spikes(lines: Lines) -> dict[str, int]:
    """How many steps each published definition flags: {"spikes: OLMo 2, loss": n}."""
    counts = {}
    for name, definition in DEFINITIONS.items():
        for metric in definition.of:
            values = series_of(lines, metric)[1][:, 0]
            counts[f"spikes: {name}, {metric.removeprefix('train/')}"] = int(definition.flags(values).sum())
    return counts


def _of(values: np.ndarray, reduce: Any) -> Any:
    finite = values[np.isfinite(values)]
    return reduce(finite) if finite.size else None


def _end(values: np.ndarray, reduce: Any = np.mean) -> Any:
    """A number of the last row in which anything is finite."""
    rows = [row for row in values if np.isfinite(row).any()]
    return _of(rows[-1], reduce) if rows else None


def _last(measured: Mapping[str, Series], name: str) -> Any:
    """The value of the last block at the end."""
    series = measured.get(f"stability/{name}")
    return None if series is None else _end(series[1][:, -1:])


def _median(measured: Mapping[str, Series], name: str) -> Any:
    """The median over steps of the last block's values."""
    series = measured.get(f"stability/{name}")
    return None if series is None else _of(series[1][:, -1], np.median)


def _over(measured: Mapping[str, Series], name: str, reduce: Any, at_end: bool = True) -> Any:
    """A number over all roles and layers, of the last row of each or of all rows."""
    prefix = f"stability/{name}/"
    values = [series[1] for key, series in measured.items() if key.startswith(prefix)]
    numbers = [_end(each, reduce) if at_end else _of(each, reduce) for each in values]
    numbers = [number for number in numbers if number is not None]
    return reduce(numbers) if numbers else None
