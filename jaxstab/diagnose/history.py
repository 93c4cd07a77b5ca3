"""The history of a run: series of values over steps, read from its workdir, and what is usual for a series."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.lib.stride_tricks import sliding_window_view

from jaxstab import safe_json
from jaxstab.config import UserError, build_method, from_flat
from jaxstab.data import PackedSplit, cached_split
from jaxstab.logging import in_force, read_measurements, read_metrics
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.numerics import robust_spread
from jaxstab.optimize import PROJECTIONS
from jaxstab.table import MATRICES, Row, named_rows, rows
from jaxstab.train import journal as journals
from jaxstab.train.config import Config
from jaxstab.train.journal import Journal
from jaxstab.train.setup import reparameterized
from jaxstab.train.workdir import CONFIG

CHUNK = 2048
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Series:
    """Values of one measurement at ascending steps, one column per layer (one for what has no layers)."""

    steps: Int[np.ndarray, " n"]
    values: Float[np.ndarray, "n layers"]

    @property
    def layers(self) -> int:
        return self.values.shape[1]


@dataclasses.dataclass(frozen=True)
class History:
    """What a run has left.

    Attributes:
      workdir: where it is.
      series: by full name, `train/loss` or `stability/norm/q_proj`.
      seams: steps that follow a roll-back, whose state isn't that of the step before.
      saved: the flat config that was saved with it; {} where it wasn't.
      journal: the interventions that it keeps to.
      split: the records that it was trained on; None where they aren't in the cache any more.
    """

    workdir: Path
    series: dict[str, Series]
    seams: frozenset[int]
    saved: dict[str, Any]
    journal: Journal = dataclasses.field(default_factory=Journal)
    split: PackedSplit | None = None
    _results: dict[Callable, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    _measured: dict[str, dict[str, Series]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def once(self, function: Callable[[History], T]) -> T:
        """`function(self)`, computed when it is first asked for and remembered; several causes need the same."""
        if function not in self._results:
            self._results[function] = function(self)
        return cast(T, self._results[function])

    def measured(self, measurement: str) -> dict[str, Series]:
        """{role: series} of a measurement, of the matrices or by path, in the order of the table's roles."""
        if measurement not in self._measured:
            self._measured[measurement] = self._by_role(measurement)
        return self._measured[measurement]

    def _by_role(self, measurement: str) -> dict[str, Series]:
        prefix = f"stability/{measurement}/"
        by_role = {name.removeprefix(prefix): each for name, each in self.series.items() if name.startswith(prefix)}
        return dict(sorted(by_role.items(), key=lambda item: (*_place(item[0]), item[0])))

    def sketches(self, of: str) -> dict[str, Series]:
        """{name: series} of the sketches of "weight", "weight_after", "mu" or "gradient"; {} where there are none."""
        return self.measured(f"sketch/{of}")

    @property
    def norms(self) -> dict[str, Series]:
        """{name: series} of the norms of all that is stored, vectors too."""
        return self.measured("norm") | self.measured("vector_norm")

    def scalar(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a series without layers; empty where it isn't there."""
        series = self.series.get(name)
        return (series.steps, series.values[:, 0]) if series else (np.zeros(0, np.int64), np.zeros(0))

    @functools.cached_property
    def stride(self) -> int:
        """Steps from one loss to the next: 1, but for logs that have some steps alone."""
        steps, _ = self.scalar("train/loss")
        return max(1, int(np.median(np.diff(steps)))) if len(steps) > 1 else 1

    @functools.cached_property
    def config(self) -> Config | None:
        """The saved config; None where there is none, or where it is that of another version."""
        try:
            return from_flat(Config, self.saved) if self.saved else None
        except UserError:
            return None

    @property
    def table(self) -> dict[str, Row]:
        """The rows of the effective matrices by role, with initial scales; {} where the saved config gives none."""
        return matrices(self.config) if self.config else {}

    @property
    def stored(self) -> dict[str, Row]:
        """The rows of all stored parameters by name; {} where the saved config gives none."""
        return stored_rows(self.config) if self.config else {}

    @property
    def shrunk(self) -> tuple[str, ...]:
        """Roles of the matrices that the projection after an update may scale down, which no update ratio shows."""
        return build_method(self.config.optimizer.projection, PROJECTIONS).shrinks if self.config else ()

    @property
    def shrinkable(self) -> bool:
        """Whether a projection may scale what is stored of queries and keys: nothing divides their norms out."""
        if self.config is None or self.config.model.qk_norm:
            return False
        matrices = [row for row in self.stored.values() if row.is_matrix and "k_proj" in row.path]
        return len(matrices) == 1 and all(method.linear for method in reparameterized(self.config)[1])

    @property
    def normalizes_embedding(self) -> bool:
        """Whether what enters the first block is normalised, so that it hasn't the scale of the embedding's matrix."""
        return self.config is not None and build_method(self.config.model.embedding, EMBEDDINGS).normalized


@functools.lru_cache(maxsize=8)
def matrices(config: Config) -> dict[str, Row]:
    """The rows of the effective matrices that begin as they are drawn, by role."""
    if config.search:
        return {}
    effective, methods, _ = reparameterized(config)
    untied = [row for row in rows(effective) if row.is_matrix and not row.tied]
    return {row.role: row for row in untied if all(each.preserves for each in methods if each.applies(row))}


@functools.lru_cache(maxsize=8)
def stored_rows(config: Config) -> dict[str, Row]:
    """The rows of what is stored, by name."""
    return named_rows(reparameterized(config)[2].table)


def _place(role: str) -> tuple[int, int]:
    if role.isdigit():
        return (0, int(role))
    return (1, MATRICES.index(role) if role in MATRICES else len(MATRICES))


def read_history(workdir: str | Path) -> History:
    """Reads the history of a run, finished or still going; its metrics.jsonl is all that is needed.

    Raises:
      UserError: there is no metrics file, or no training step in it.
    """
    workdir = Path(workdir)
    lines = [line for line in in_force(read_metrics(workdir / "metrics.jsonl")) if "train/loss" in line]
    if not lines:
        raise UserError(f"{workdir}/metrics.jsonl has no training step yet")
    pairs: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "attempt"):
                pairs[name].append((line["step"], value))
    series = {name: _scalar_series(each) for name, each in pairs.items()}
    for name, (steps, values) in read_measurements(workdir).items():
        series[name] = Series(steps, values.astype(np.float64))
    seams = (after["step"] for before, after in itertools.pairwise(lines) if before["attempt"] != after["attempt"])
    saved = _saved(workdir)
    return History(
        workdir, series, frozenset(seams), saved.get("config", {}), journals.read(workdir), _trained_on(saved)
    )


def _trained_on(saved: dict[str, Any]) -> PackedSplit | None:
    """The records that a run was trained on, where its cache has them."""
    try:
        config, digest = from_flat(Config, saved["config"]), saved["identity"]["data_digest"]
    except (UserError, KeyError):
        return None
    return cached_split(config.data, digest)


def _scalar_series(pairs: list[tuple[int, float]]) -> Series:
    steps, values = zip(*pairs, strict=True)
    return Series(np.array(steps, np.int64), np.array(values, np.float64)[:, None])


def _saved(workdir: Path) -> dict[str, Any]:
    """What was saved with a run, its flat config in "config"; {} where nothing was."""
    path = workdir / CONFIG
    if not path.is_file():
        return {}
    try:
        saved = safe_json.load(path)
        return saved if isinstance(saved["config"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be read ({type(error).__name__}: {error})") from error


def usual(
    values: Float[np.ndarray, "n ..."], at: Int[np.ndarray, " k"], window: int, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Median and spread of the values before given indices: what is usual, whatever outliers there were.

    Args:
      values: `[n, *layers]`, NaN where there is none.
      at: indices.
      window: how many values before are looked at.
      least: how many of them must be there.

    Returns:
      Median and 1.4826 median absolute deviations, `[k, *layers]`; NaN where fewer than `least` values are there.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    padded = np.concatenate([np.full((window, *values.shape[1:]), np.nan), values])
    windows = sliding_window_view(padded, window, axis=0)  # the window at i ends before values[i]
    center, spread = np.full((2, len(at), *values.shape[1:]), np.nan)
    for start in range(0, len(at), CHUNK):
        part = slice(start, start + CHUNK)
        past = windows[at[part]]
        enough = np.isfinite(past).sum(-1) >= least
        past = np.where(enough[..., None], past, 0.0)
        middle = np.nanmedian(past, axis=-1)
        center[part] = np.where(enough, middle, np.nan)
        spread[part] = np.where(enough, robust_spread(past - middle[..., None]), np.nan)
    return center, spread


def events(flags: Bool[np.ndarray, " n"], steps: Int[np.ndarray, " n"], gap: int = 10) -> list[tuple[int, int]]:
    """Flagged steps as events (first, last): those with at most `gap` steps between them are one."""
    spans: list[tuple[int, int]] = []
    for step in steps[flags]:
        if spans and step - spans[-1][1] <= gap:
            spans[-1] = spans[-1][0], int(step)
        else:
            spans.append((int(step), int(step)))
    return spans
