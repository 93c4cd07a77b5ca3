"""Figures of a run as inline SVG: those of the papers, from its own data."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxstab.diagnose.history import History, Series

MOST_POINTS = 800
LINEAR = ("q_proj", "k_proj", "v_proj", "g_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
COLORS = dict(zip(LINEAR, ("C0", "C1", "C2", "C9", "C4", "C5", "C7", "C3"), strict=True))


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure, or the sentence that says what it is missing."""

    title: str
    caption: str
    svg: str
    missing: str = ""


class _MissingError(Exception):
    """What a figure shows wasn't measured."""


def figures(history: History, marks: list[int]) -> list[Figure]:
    """All figures, with lines at the steps `marks`; those whose data isn't there say what is missing."""
    return [_figure(history, marks, title, caption, draw) for title, caption, draw in FIGURES]


def _figure(history: History, marks: list[int], title: str, caption: str, draw: Callable[..., None]) -> Figure:
    with canvas() as figure:
        try:
            draw(history, figure)
        except _MissingError as missing:
            return Figure(title, caption, "", str(missing))
        for axis in figure.axes:
            if axis.get_xlabel() == "step":
                for mark in marks:
                    axis.axvline(mark, color="0.35", linewidth=0.9, linestyle=":", zorder=0)
            axis.label_outer()
        return Figure(title, caption, svg_of(figure))


@contextlib.contextmanager
def canvas() -> Iterator[Any]:
    """A figure that is drawn without a display and without matplotlib's global state."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "jaxstab",
        "font.size": 9,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "0.92",
        "axes.axisbelow": True,
        "lines.linewidth": 1.1,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "figure.figsize": (8.4, 3.0),
    }
    with matplotlib.rc_context(style):
        yield Canvas(layout="constrained")


def svg_of(figure: Any) -> str:
    """An SVG element that fits into a page; its names are made distinct from those of other figures."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    salt = f"f{zlib.crc32(text.encode())}"
    text = re.sub(r'\bid="', f'id="{salt}', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{salt}", text)
    return re.sub(
        r'(<svg[^>]*?) height="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1), count=1
    )


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most 800 points that keep every stretch's least and largest value."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    extremes: list[int] = []
    for part in np.array_split(np.arange(len(steps)), MOST_POINTS // 2):
        finite = part[np.isfinite(values[part])]
        if len(finite):
            extremes += sorted({int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])})
    return steps[extremes], values[extremes]


def _line(axis: Any, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    steps, values = thinned(steps, np.where(np.isfinite(values), values, np.nan))
    axis.plot(steps, values, marker="." if len(steps) < 30 else None, **style)
    axis.set_xlabel("step")


def _needed(measured: Any, what: str) -> Any:
    if measured is None or not len(measured):
        raise _MissingError(f"missing: {what}")
    return measured


def _log(axis: Any) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.lines] or [np.ones(1)])
    if np.any(values > 0):
        axis.set_yscale("log")


def _overview(history: History, figure: Any) -> None:
    figure.set_size_inches(8.4, 4.6)
    top, middle, bottom = figure.subplots(3, sharex=True, height_ratios=(2, 1, 0.7))
    _line(top, *history.scalar("train/loss"), color="C0")
    top.set_ylabel("loss")
    _line(middle, *history.scalar("train/grad_norm"), color="C1")
    _log(middle)
    middle.set_ylabel("gradient norm")
    _line(bottom, *history.scalar("train/learning_rate"), color="C2")
    bottom.set_ylabel("learning rate")


def _last_layer(history: History, measurement: str) -> dict[str, Series]:
    by_role = {role: series for role, series in history.measured(measurement).items() if role in LINEAR}
    return _needed(by_role, f"stability/{measurement}/<role> in measurements/")


def _roles(axis: Any, by_role: dict[str, Series], layer: int, **style: Any) -> None:
    for role, series in by_role.items():
        _line(axis, series.steps, series.values[:, layer], color=COLORS[role], label=role, **style)


def _of_the_mlp(by_role: dict[str, Series]) -> dict[str, Series]:
    return {role: by_role[role] for role in ("up_proj", "down_proj") if role in by_role}


def _are_alike(first: Series, second: Series) -> bool:
    """Whether the last layer's values of two series are the same, but for rounding."""
    last = first.values[:, -1], second.values[:, -1]
    return np.array_equal(first.steps, second.steps) and np.allclose(*last, rtol=1e-3, equal_nan=True)


def _figure_1(history: History, figure: Any) -> None:
    ratios = _of_the_mlp(_last_layer(history, "update_ratio"))
    figure.set_size_inches(8.4, 3.8)
    top, bottom = figure.subplots(2, sharex=True)
    _line(top, *history.scalar("train/loss"), color="0.3")
    top.set_ylabel("loss")
    _roles(bottom, _needed(ratios, "stability/update_ratio of up_proj and down_proj"), -1)
    _log(bottom)
    bottom.set_ylabel("‖ΔW‖ / ‖W‖")
    bottom.legend(ncols=2)


def _figure_3(history: History, figure: Any) -> None:
    norms = _of_the_mlp(_last_layer(history, "norm"))
    axis = figure.subplots()
    _roles(axis, _needed(norms, "stability/norm of up_proj and down_proj"), -1)
    effective = history.measured("norm_effective")
    for role, series in _of_the_mlp(effective).items():
        if role in norms and not _are_alike(series, norms[role]):
            label = f"{role}, effective"
            _line(axis, series.steps, series.values[:, -1], color=COLORS[role], linestyle="--", label=label)
    axis.set_ylabel("‖W‖")
    axis.legend(ncols=2)


def _figure_8(history: History, figure: Any) -> None:
    axis = figure.subplots()
    _roles(axis, _last_layer(history, "grad_norm"), -1)
    _log(axis)
    axis.set_ylabel("gradient norm")
    axis.legend(ncols=4)


def _figures_9_to_12(history: History, figure: Any) -> None:
    ratios = _last_layer(history, "update_ratio")
    depth = max(series.layers for series in ratios.values())
    chosen = list(dict.fromkeys(max(0, round(depth * part) - 1) for part in (1, 27 / 40, 14 / 40, 1 / 40)))
    figure.set_size_inches(8.4, 4.8 if len(chosen) > 2 else 2.8)
    panels = figure.subplots(-(-len(chosen) // 2), min(2, len(chosen)), sharex=True, sharey=True, squeeze=False)
    for axis, layer in zip(panels.flat, chosen, strict=False):
        _roles(axis, {role: series for role, series in ratios.items() if series.layers > layer}, layer)
        axis.set_title(f"layer {layer}", fontsize=9)
        _log(axis)
        axis.set_ylabel("‖ΔW‖ / ‖W‖")
    for axis in panels.flat[len(chosen) :]:
        axis.set_axis_off()
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)


def _tev_figure(history: History, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    means = {role: history.scalar(f"stability/tev_mean/{role}") for role in ("embed_tokens", "lm_head")}
    if not any(len(steps) for steps, _ in means.values()):
        raise _MissingError("missing: stability/tev_mean/<role> in metrics.jsonl")
    for color, (role, (steps, values)) in zip(("C0", "C3"), means.items(), strict=True):
        if len(steps):
            _line(left, steps, values, color=color, label=role)
    left.set_ylabel("mean TEV")
    left.legend()
    variances = history.measured("gradient_variance")
    if not variances:
        missing = "gradient variance was not measured\n(stability.measure=full, train.accumulation > 1)"
        right.text(0.5, 0.5, missing, ha="center", va="center", transform=right.transAxes, color="0.5")
        right.set_axis_off()
        return
    first = next(iter(variances.values()))
    same = [series.values for series in variances.values() if np.array_equal(series.steps, first.steps)]
    _line(right, first.steps, np.concatenate(same, axis=1).mean(axis=1), color="C1")
    _log(right)
    right.set_ylabel("gradient variance, mean of all matrices")


def _layers_over_steps(figure: Any, by_part: dict[str, Series], label: str) -> None:
    """A panel per part and a line per layer, from the first (dark) to the last (light)."""
    import matplotlib

    panels = figure.subplots(1, len(by_part), sharey=True, squeeze=False)[0]
    for axis, (part, series) in zip(panels, by_part.items(), strict=True):
        for layer in range(series.layers):
            color = matplotlib.colormaps["viridis"](layer / max(1, series.layers))
            _line(axis, series.steps, series.values[:, layer], color=color, label=str(layer))
        axis.set_title(part, fontsize=9)
        _log(axis)
    panels[0].set_ylabel(label)
    if max(each.layers for each in by_part.values()) <= 12:
        panels[-1].legend(title="layer", fontsize=7)


def _shortcut(history: History, figure: Any) -> None:
    by_branch = {part: series for part, series in history.measured("shortcut_std").items() if series.layers > 1}
    _layers_over_steps(figure, _needed(by_branch, "stability/shortcut_std (stability.measure=full)"), "std")


def _jacobian(history: History, figure: Any) -> None:
    norms = _needed(history.measured("jacobian"), "stability/jacobian (stability.measure=full)")
    bounds = history.measured("jacobian_bound")
    panels = figure.subplots(1, len(norms), squeeze=False)[0]
    for axis, (part, series) in zip(panels, norms.items(), strict=True):
        layers = np.arange(series.layers)
        for row, style in ((0, ":"), (-1, "-")):
            axis.plot(layers, series.values[row], "C0" + style, marker=".", label=f"measured, step {series.steps[row]}")
            if part in bounds and bounds[part].values.shape == series.values.shape:
                axis.plot(
                    layers, bounds[part].values[row], "C3" + style, marker=".", label=f"bound, step {series.steps[row]}"
                )
        axis.set(title=part, xlabel="layer", ylabel="spectral norm of the Jacobian")
        _log(axis)
    panels[-1].legend(fontsize=7)


def _attention(history: History, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    heads = _needed(history.measured("max_attention_logit"), "stability/max_attention_logit (stability.measure=full)")
    entropies = history.measured("attention_entropy")
    for axis, name, by_head in ((left, "largest attention logit", heads), (right, "entropy (nats)", entropies)):
        for part, series in by_head.items():
            for layer in range(series.layers):
                label = f"layer {layer}" if part == "0" else None
                _line(axis, series.steps, series.values[:, layer], color=f"C{layer % 10}", linewidth=0.8, label=label)
        axis.set_ylabel(name)
    _log(left)
    if next(iter(heads.values())).layers <= 12:
        left.legend(fontsize=7, ncols=2)


def _histogram(history: History, figure: Any) -> None:
    counts = _needed(history.measured("tev_histogram"), "stability/tev_histogram (stability.measure=full)")
    edges = history.measured("tev_histogram_edges")
    axis = figure.subplots()
    for color, role in zip(("C0", "C3"), [role for role in counts if role in edges], strict=False):
        for row, style in ((0, ":"), (-1, "-")):
            label = f"{role}, step {counts[role].steps[row]}"
            axis.stairs(counts[role].values[row], edges[role].values[row], color=color, linestyle=style, label=label)
    axis.set(xlabel="TEV (standard deviation of a row)", ylabel="rows")
    axis.legend(fontsize=8)


NISHIDA, CHUNG, TAKASE = "Nishida et al. 2024", "Chung et al. 2024", "Takase et al. 2025"
FIGURES: list[tuple[str, str, Callable[..., None]]] = [
    (
        "The run",
        "Loss, gradient norm before clipping, learning rate. Dotted, here and below: spikes and the cause's onset.",
        _overview,
    ),
    (
        "Loss and update ratios",
        f"As Figure 1 of {NISHIDA}: update ratios of up_proj and down_proj in the last layer.",
        _figure_1,
    ),
    ("Norms", f"As Figure 3 of {NISHIDA}: ‖W‖ of up_proj and down_proj in the last layer, as stored.", _figure_3),
    ("Gradient norms", f"As Figure 8 of {NISHIDA}: the gradient of each matrix of the last layer.", _figure_8),
    (
        "Update ratios by layer",
        f"As Figures 9 to 12 of {NISHIDA}: all linear layers, at the depths of theirs (40, 27, 14 and 1 of 40).",
        _figures_9_to_12,
    ),
    ("TEV and gradient variance", f"As Figure 3 of {CHUNG}, with the variance across micro-batches.", _tev_figure),
    ("TEV's distribution", f"As Figure 1 of {CHUNG}, at the first and the last full measurement.", _histogram),
    ("The shortcut", f"Its standard deviation after each branch ({TAKASE}: large shortcut).", _shortcut),
    (
        "Jacobians and their bounds",
        f"Spectral norms of the branches beside bounds (15) and (20) of {TAKASE}.",
        _jacobian,
    ),
    (
        "Attention",
        "The largest logit and the entropy of every head (Wortsman et al. 2023, Zhai et al. 2023).",
        _attention,
    ),
]
