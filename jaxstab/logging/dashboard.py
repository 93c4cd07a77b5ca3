"""What TensorBoard shows of a run, whatever the model's depth.

- `Overview`, the first section: loss, gradient norm, spikes, learning rate, tokens per second, MFU.
- A section per measurement, with a tag per role and layer, `update_ratio/down_proj/layer_07`. Of a deep model these are
  eight layers, evenly spaced, and the lowest and the highest value of all layers; `measurements/` has every layer.
- A heat map of all layers and roles in the sections of the measurements that tell most.
- Custom Scalars has the same sections; there the layers of a role are the lines of one chart.
- Text has the run's config and its samples, HParams a line per run: the options in which runs differ, and their losses.
"""

from __future__ import annotations

import functools
import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab.logging.heat_map import draw_heat_map
from jaxstab.logging.tensorboard import TensorBoard

OVERVIEW = {
    "train/loss": "Overview/loss",
    "eval/validation/loss": "Overview/eval_loss",
    "train/grad_norm": "Overview/grad_norm",
    "train/learning_rate": "Overview/learning_rate",
    "train/tokens_per_second": "Overview/tokens_per_second",
    "train/mfu": "Overview/mfu",
}
SPIKES = "Overview/spikes"
LAYER_LINES = 8
LAYER_TAG = re.compile(r"(.+)/(layer_\d+|(min|max)_over_layers)")
HEAT_MAPS = ("update_ratio", "grad_norm_effective", "max_attention_logit")
HIDDEN = "stability/sketch/"  # numbers that say something to a program alone
HEAT_MAPS_PER_RUN = 100
SECONDS_BETWEEN_HEAT_MAPS = 60  # a heat map takes about a tenth of a second to draw
OBSERVATION = ("eval", "checkpoint", "log")  # sections of the config that change nothing of what is trained

ByMeasurement = Mapping[str, Mapping[str, np.ndarray]]  # {measurement: {role: [layers]}}


class Dashboard:
    """Writes TensorBoard's view of a run; every method raises OSError where writing fails."""

    def __init__(self, workdir: Path, last_step: int, every: int, total_steps: int, spikes: int):
        """Continues the view after `last_step`.

        Args:
          workdir: the directory of the run.
          last_step: later steps of earlier files are not shown any more.
          every: the fewest steps between two points of a curve.
          total_steps: the step at which the run ends.
          spikes: how many steps up to `last_step` were spikes.
        """
        self._board = TensorBoard(workdir, last_step)
        self._thinner = Thinner(every)
        self._heat_map_times = HeatMapTimes(total_steps)
        self._total = total_steps
        self._spikes = spikes
        self._tags: set[str] = set()
        self._in_hparams = False

    def start(self, step: int, run_config: Mapping[str, Any]) -> None:
        """Writes the flat config of the run, as a text and as its line in HParams."""
        self.text(step, "config", "\n".join(f"{key} = {value}" for key, value in run_config.items()))
        options = {
            key: value if isinstance(value, int | float) else str(value)
            for key, value in run_config.items()
            if key.split(".")[0] not in OBSERVATION
        }
        # The description of the experiment is left out, since TensorBoard makes a better one of all runs that it shows:
        # first the options in which they differ, then metrics in the order of their names, which the overview begins.
        self._board.session_start(step, options)
        self._in_hparams = True

    def train(self, step: int, scalars: Mapping[str, float], arrays: Mapping[str, np.ndarray]) -> None:
        """Writes those metrics of a step that are due: each once in `every` steps, all of them at the last step."""
        self._spikes += bool(scalars.get("train/spike"))
        due: dict[str, Any] = {
            **scalars,
            **{name: each for name, each in arrays.items() if not name.startswith(HIDDEN)},
        }
        if step != self._total:
            due = self._thinner(step, due)
        vectors = {name: due.pop(name) for name in arrays if name in due}
        for name, counts, edges in take_histograms(vectors):
            self._board.histogram(step, _tag(name), counts, edges)
        by_measurement = _by_measurement(vectors)
        values = scalar_tags(due) | layer_tags(by_measurement)
        if "train/spike" in due:
            values[SPIKES] = float(self._spikes)
        self._write_scalars(step, values)
        for measurement in HEAT_MAPS:
            if measurement in by_measurement and self._heat_map_times.due(step, measurement):
                self._board.image(step, f"{measurement}/heat_map", *draw_heat_map(by_measurement[measurement]))

    def eval(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes an evaluation's results."""
        self._write_scalars(step, scalar_tags(scalars))

    def text(self, step: int, name: str, text: str) -> None:
        """Writes a text, shown as it is, not as Markdown."""
        self._board.text(step, name, text)

    def complete(self) -> None:
        """Says in HParams that the run has come to its end."""
        if self._in_hparams:
            self._board.session_end(self._total)

    def flush(self) -> None:
        """Brings to disk what was written."""
        self._board.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._board.close()

    def _write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars, and the layout of Custom Scalars again where they bring new charts."""
        if not values:
            return
        self._board.scalars(step, values)
        tags = self._tags | values.keys()
        if len(tags) > len(self._tags) and self._board.layout(step, chart_layout(tags)):
            self._tags = tags


class Thinner:
    """Lets the values of a name through once in `every` steps, whatever its own cadence."""

    def __init__(self, every: int):
        self._every = every
        self._next: dict[str, int] = {}

    def __call__(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values that are due at `step`; those of a name come at least `every` steps apart."""
        due = {name: value for name, value in values.items() if step >= self._next.get(name, step)}
        self._next |= dict.fromkeys(due, step + self._every)
        return due


class HeatMapTimes:
    """When heat maps are drawn: a hundred per run and measurement and one per minute at most, and always at the end."""

    def __init__(self, total_steps: int):
        self._total = total_steps
        self._next: dict[str, tuple[float, float]] = {}

    def due(self, step: int, measurement: str) -> bool:
        """Whether the heat map of a measurement is drawn at this step; if so, the next one has to wait."""
        now = time.monotonic()
        next_step, next_time = self._next.get(measurement, (0, now))
        if step != self._total and (step < next_step or now < next_time):
            return False
        self._next[measurement] = step + self._total / HEAT_MAPS_PER_RUN, now + SECONDS_BETWEEN_HEAT_MAPS
        return True


def _tag(name: str) -> str:
    """The tag of a metric, whose part before the first slash is its section."""
    return name.removeprefix("stability/")


def scalar_tags(scalars: Mapping[str, float]) -> dict[str, float]:
    """The scalars by tag; those of the overview are there and in their own section."""
    return {_tag(name): value for name, value in scalars.items()} | {
        tag: scalars[name] for name, tag in OVERVIEW.items() if name in scalars
    }


def _by_measurement(vectors: Mapping[str, np.ndarray]) -> ByMeasurement:
    """Vectors over layers, `[layers]`, by measurement and role; the role of `dead_units` is empty."""
    by_measurement: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for name, values in vectors.items():
        measurement, _, role = _tag(name).partition("/")
        by_measurement[measurement][role] = values
    return by_measurement


def layer_tags(by_measurement: ByMeasurement) -> dict[str, float]:
    """The lines of every chart over layers: `{"update_ratio/down_proj/layer_07": value}`.

    Where the roles are attention heads, there are two charts, of the lowest and the highest value over the heads.
    """
    charts: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
    for measurement, by_role in by_measurement.items():
        for role, values in _over_heads(by_role).items():
            charts[len(values)][f"{measurement}/{role}" if role else measurement] = values
    tags: dict[str, float] = {}
    for layers, by_chart in charts.items():  # as one matrix, since NumPy takes its time for each call
        values = np.stack(list(by_chart.values()))
        shown = values[:, _shown(layers)]
        if shown.shape[1] < layers:
            shown = np.column_stack([shown, values.min(axis=1), values.max(axis=1)])
        tags.update(zip(_layer_tags(tuple(by_chart), layers), shown.ravel().tolist(), strict=True))
    return tags


def _over_heads(by_role: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    if not all(role.isdecimal() for role in by_role):
        return by_role
    heads = np.stack(list(by_role.values()))
    return {"min_over_heads": heads.min(axis=0), "max_over_heads": heads.max(axis=0)}


@functools.cache
def _shown(layers: int) -> np.ndarray:
    """The layers that are shown as lines, evenly spaced from the first to the last."""
    return np.linspace(0, layers - 1, min(layers, LAYER_LINES)).round().astype(int)


@functools.cache
def _layer_tags(charts: tuple[str, ...], layers: int) -> list[str]:
    """The tags of each chart's lines."""
    width, shown = len(str(layers - 1)), _shown(layers)
    lines = [f"layer_{layer:0{width}}" for layer in shown]
    if len(shown) < layers:
        lines += ["min_over_layers", "max_over_layers"]
    return [f"{chart}/{line}" for chart in charts for line in lines]


def chart_layout(tags: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """The layout of Custom Scalars: `{section: {chart: patterns of tags}}`, the overview first."""
    overview = [tag for tag in (*OVERVIEW.values(), SPIKES) if tag in tags]
    charts: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for tag in [*overview, *sorted(set(tags) - set(overview))]:
        layer_tag = LAYER_TAG.fullmatch(tag)
        chart = layer_tag[1] if layer_tag else tag
        section, _, title = chart.partition("/")
        charts[section][title or section] = [re.escape(chart) + ("/" if layer_tag else "$")]
    return charts


def take_histograms(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Takes `x_histogram/role` and `x_histogram_edges/role` out of `arrays`, as (name, counts, edges)."""
    for name in [name for name in arrays if "_histogram/" in name]:
        yield name, arrays.pop(name), arrays.pop(name.replace("_histogram/", "_histogram_edges/"))
