"""Whether the conditions of the three papers hold in a run.

WeSaR: Nishida et al. 2024. Spike No More: Takase et al. 2025. TEV: Chung et al. 2024.

None of the papers draws a line: they say "even", "close to 1" or "far smaller". Where one is drawn here it is this
project's, around the settings that the paper tried without trouble, and a run beyond it is outside of what the paper
saw; whether that harms is not said. A condition that a paper states exactly holds or fails.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from jaxstab.diagnose.history import History, Series
from jaxstab.diagnose.place import named
from jaxstab.stability import mlp_bound
from jaxstab.table import Row

# The paper's condition is equality (WeSaR: one σ for all stored matrices); 10% are for the chance of a draw.
COMMON = 1.1  # largest to smallest stored standard deviation

# The paper has the condition, this project the number.
EVEN = 3.0  # WeSaR: largest to smallest update ratio; measured on small models, Small has 2.6 and more, WeSaR 1.0
STEADY_NORM = 1.5  # WeSaR, Figure 3: growth of the stored norms of the last layer over a run
UNIT = (0.5, 2.0)  # Spike No More: a standard deviation "close to 1"; theirs are 0.63 (Scaled Embed) and 1 (Embed LN)
MUCH_LESS = 0.25  # Spike No More: s_O / s_x, where the paper has "s_O << s_x"
# Spike No More: bound (15) of the first layer, where the branch adds no more than the shortcut has; the bound of their
# Scaled Embed is 1.8, of their Vanilla, which spikes, 40.
SMALL_BOUND = 2.0
SMALL_JACOBIAN = 4.0  # Spike No More: largest spectral norm of a branch's Jacobian in any layer
STEADY_TEV = 1.5  # TEV: growth of mu_TEV over a run; the paper says that lower is better


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition of a paper.

    Attributes:
      paper, condition: whose condition it is, and what it asks for.
      holds: None where what is needed wasn't measured.
      measured: what was measured, or what is missing.
      exact: whether the paper itself says where the condition ends; otherwise the line is this project's.
    """

    paper: str
    condition: str
    holds: bool | None
    measured: str
    exact: bool = False

    @property
    def verdict(self) -> str:
        """Whether it holds, in words."""
        if self.holds is None:
            return "unknown"
        if self.holds:
            return "holds"
        return "fails" if self.exact else "outside what the paper saw"


def conditions(history: History) -> list[Condition]:
    """All conditions, in the order of the papers."""
    table = history.table
    return [
        _even_updates(history),
        _common_std(history, table),
        _steady_norms(history),
        _large_shortcut(history, table),
        _small_attention(history, table),
        _small_mlp(history, table),
        _jacobians(history),
        *_tev(history),
    ]


def _missing(paper: str, condition: str, what: str) -> Condition:
    return Condition(paper, condition, None, f"missing: {what}")


def _ratio(value: float, to: float) -> float:
    """value / to; infinite or NaN where that is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(value) / np.float64(to))


def _is_within(value: float, most: float) -> bool | None:
    """Whether a value is at most another; None where it is NaN."""
    return None if math.isnan(value) else bool(value <= most)


def _growth(series: Series, column: int) -> float:
    """The last finite value of a column over its first; NaN where there is none."""
    values = series.values[np.isfinite(series.values[:, column]), column]
    return _ratio(values[-1], values[0]) if len(values) else math.nan


def _even_updates(history: History) -> Condition:
    paper, condition = "WeSaR", "update ratios are even over matrices and layers"
    ratios = history.measured("update_ratio")
    if not ratios:
        return _missing(paper, condition, "stability/update_ratio")
    columns = {
        (role, layer): series.values[np.isfinite(series.values[:, layer]), layer]
        for role, series in ratios.items()
        if series.layers > 1
        for layer in range(series.layers)
    }
    typical = {place: float(np.median(values)) for place, values in columns.items() if len(values)}
    if not typical or not min(typical.values()) > 0:
        return _missing(paper, condition, "update ratios of the blocks")
    low, high = min(typical, key=lambda place: typical[place]), max(typical, key=lambda place: typical[place])
    spread = typical[high] / typical[low]
    text = (
        f"over the run, the median of {named(*high)} is {typical[high]:.3g}, that of {named(*low)} {typical[low]:.3g}: "
        f"{spread:.2g} times (even: at most {EVEN:g})"
    )
    return Condition(paper, condition, spread <= EVEN, text)


def _common_std(history: History, table: dict[str, Row]) -> Condition:
    paper, condition = "WeSaR", "all stored matrices begin with one standard deviation"
    stds = {
        role: float(np.median(series.values[0])) / math.sqrt(table[role].fan_in * table[role].fan_out)
        for role, series in history.measured("norm").items()
        if role in table and series.steps[0] == 1
    }
    stds = {role: std for role, std in stds.items() if math.isfinite(std)}
    if len(stds) < 2:
        return _missing(paper, condition, "stability/norm of step 1, and the sizes in config.json")
    low, high = min(stds, key=lambda role: stds[role]), max(stds, key=lambda role: stds[role])
    text = f"from {stds[low]:.4g} ({low}) to {stds[high]:.4g} ({high})"
    return Condition(paper, condition, stds[high] <= COMMON * stds[low], text, exact=True)


def _steady_norms(history: History) -> Condition:
    paper, condition = "WeSaR", "stored norms of the last layer stay where they began (Figure 3)"
    norms = {role: series for role, series in history.measured("norm").items() if role in ("up_proj", "down_proj")}
    growth = {role: _growth(series, -1) for role, series in norms.items()}
    if not growth or any(math.isnan(factor) for factor in growth.values()):
        return _missing(paper, condition, "stability/norm of up_proj and down_proj")
    text = ", ".join(f"{role} times {factor:.3g}" for role, factor in growth.items())
    holds = all(1 / STEADY_NORM < factor < STEADY_NORM for factor in growth.values())
    return Condition(paper, condition, holds, f"{text} (steady: within {STEADY_NORM:g} times)")


def _std_of(history: History, role: str, table: dict[str, Row]) -> Series | None:
    """The standard deviation of an effective matrix over steps, ‖W‖/√size."""
    norms = history.measured("norm_effective").get(role)
    if norms is None or role not in table:
        return None
    return Series(norms.steps, norms.values / math.sqrt(table[role].fan_in * table[role].fan_out))


def _embedding_std(history: History, table: dict[str, Row]) -> tuple[float, int, str] | None:
    """The standard deviation of the embeddings that enter the first block, the step, and what it was read off."""
    steps, values = history.scalar("stability/shortcut_std/embedding")
    if len(steps) and (steps[0] == 1 or history.normalizes_embedding):
        return float(values[0]), int(steps[0]), "the shortcut"
    if history.normalizes_embedding:
        return None
    std = _std_of(history, "embed_tokens", table)
    if std is not None:
        return float(std.values[0, 0]), int(std.steps[0]), "the effective matrix"
    steps, values = history.scalar("stability/tev_mean/embed_tokens")
    return (float(values[0]), int(steps[0]), "TEV") if len(steps) else None


def _large_shortcut(history: History, table: dict[str, Row]) -> Condition:
    paper, condition = "Spike No More", "large shortcut: the standard deviation of the embedding is close to 1"
    embedding = _embedding_std(history, table)
    if embedding is None or math.isnan(embedding[0]):
        return _missing(paper, condition, "stability/norm_effective/embed_tokens with config.json, or shortcut_std")
    std, step, source = embedding
    text = f"{std:.3g} at step {step}, read off {source} (close: {UNIT[0]:g} to {UNIT[1]:g})"
    return Condition(paper, condition, UNIT[0] <= std <= UNIT[1], text)


def _small_attention(history: History, table: dict[str, Row]) -> Condition:
    paper, condition = "Spike No More", "small sub-layers: s_O << s_x in the first layer"
    output, embedding = _std_of(history, "o_proj", table), _embedding_std(history, table)
    if output is None or embedding is None:
        return _missing(paper, condition, "stability/norm_effective/o_proj with config.json")
    std = float(output.values[0, 0])
    part = _ratio(std, embedding[0])
    text = f"s_O / s_x = {std:.3g} / {embedding[0]:.3g} = {part:.3g} (at most {MUCH_LESS:g})"
    return Condition(paper, condition, _is_within(part, MUCH_LESS), text)


def _small_mlp(history: History, table: dict[str, Row]) -> Condition:
    """Bound (15), 1 + s_1 s_2 (√d + √d_ffn)² / s_x', with s_x' >= s_x of the embedding where it isn't measured."""
    paper, condition = "Spike No More", "small sub-layers: s_1 s_2 << s_x' in the first layer"
    up, down = _std_of(history, "up_proj", table), _std_of(history, "down_proj", table)
    embedding = _embedding_std(history, table)
    if up is None or down is None or embedding is None:
        return _missing(paper, condition, "stability/norm_effective of up_proj and down_proj with config.json")
    shortcuts = history.measured("shortcut_std").get("attention")
    shortcut = embedding[0] if shortcuts is None else float(shortcuts.values[0, 0])
    source = "the embedding's" if shortcuts is None else "measured after attention"
    row = table["up_proj"]
    product = float(up.values[0, 0]) * float(down.values[0, 0])
    std_1, std_2, std_x = (jnp.asarray(std) for std in (up.values[0, 0], down.values[0, 0], shortcut))
    bound = float(mlp_bound(std_1, std_2, std_x, row.fan_in, row.fan_out))
    text = (
        f"s_1 s_2 = {product:.3g}, s_x' = {shortcut:.3g} ({source}): bound (15) is {bound:.3g} "
        f"(at most {SMALL_BOUND:g})"
    )
    return Condition(paper, condition, _is_within(bound, SMALL_BOUND), text)


def _jacobians(history: History) -> Condition:
    paper, condition = "Spike No More", "Jacobians of the branches stay small, and under bounds (15) and (20)"
    norms, bounds = history.measured("jacobian"), history.measured("jacobian_bound")
    norms = {branch: series for branch, series in norms.items() if not np.isnan(series.values).all()}
    if not norms:
        return _missing(paper, condition, "stability/jacobian, of full measurements (stability.measure=full)")
    texts = []
    for branch, series in norms.items():
        text, bound = f"{branch}: at most {np.nanmax(series.values):.3g}", bounds.get(branch)
        if bound is not None and bound.values.shape == series.values.shape and not np.isnan(bound.values).all():
            under = float(np.mean(series.values <= bound.values))
            largest = float(np.nanmax(bound.values))
            text += f", under its bound in {under:.0%} of the measurements (bound at most {largest:.3g})"
        texts.append(text)
    holds = all(np.nanmax(series.values) <= SMALL_JACOBIAN for series in norms.values())
    return Condition(paper, condition, holds, f"{'; '.join(texts)} (small: at most {SMALL_JACOBIAN:g})")


def _tev(history: History) -> list[Condition]:
    return [_steady_tev(history, role) for role in ("embed_tokens", "lm_head")]


def _steady_tev(history: History, role: str) -> Condition:
    paper, condition = "TEV", f"mu_TEV of {role} is steady (grows to at most {STEADY_TEV:g} times)"
    steps, values = history.scalar(f"stability/tev_mean/{role}")
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    if not len(steps):
        return _missing(paper, condition, f"stability/tev_mean/{role}")
    text = (
        f"{values[0]:.4g} at step {steps[0]}, {values[-1]:.4g} at step {steps[-1]}, at most {values.max():.4g} "
        f"({_ratio(values[-1], values[0]):.3g}x)"
    )
    return Condition(paper, condition, _is_within(_ratio(values.max(), values[0]), STEADY_TEV), text)
