"""Whether the conditions of the three papers hold in a run, and what they would change.

WeSaR: Nishida et al. 2024. Spike No More: Takase et al. 2025. TEV: Chung et al. 2024.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jaxstab.diagnose.cause import SPAN, Cause, growth, named
from jaxstab.diagnose.series import Run, Series
from jaxstab.table import Row

EVEN = 3.0  # largest to smallest update ratio; Small's down_proj to up_proj is 2.6 and more, WeSaR's 1.0
COMMON = 1.1  # largest to smallest stored standard deviation
UNIT = (0.5, 2.0)  # a standard deviation "close to 1"; Scaled Embed's is 0.63
MUCH_LESS = 0.25  # "s_O << s_x"
SMALL_BOUND = 2.0  # of bound (15): the branch adds no more than the shortcut has; Scaled Embed's is 1.8, Vanilla's 40
STEADY = 1.5  # growth of mu_TEV over a run


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition of a paper.

    Attributes:
      paper, condition: whose and what.
      holds: None where what it takes wasn't measured.
      found: what was measured, or what is missing.
    """

    paper: str
    condition: str
    holds: bool | None
    found: str


def conditions(run: Run) -> list[Condition]:
    """All conditions, in the order of the papers."""
    table = run.table()
    return [
        _even_updates(run),
        _common_std(run, table),
        _steady_norms(run),
        _large_shortcut(run, table),
        _small_attention(run, table),
        _small_mlp(run, table),
        _jacobians(run),
        *_tev(run),
    ]


def _missing(paper: str, condition: str, what: str) -> Condition:
    return Condition(paper, condition, None, f"missing: {what}")


def _even_updates(run: Run) -> Condition:
    paper, condition = "WeSaR", "update ratios are even over matrices and layers"
    ratios = run.measured("update_ratio")
    if not ratios:
        return _missing(paper, condition, "stability/update_ratio")
    typical = {
        (role, layer): float(np.nanmedian(series.values[:, layer]))
        for role, series in ratios.items()
        if series.layers > 1
        for layer in range(series.layers)
    }
    if not typical or not min(typical.values()) > 0:
        return _missing(paper, condition, "update ratios of the blocks")
    low, high = min(typical, key=lambda key: typical[key]), max(typical, key=lambda key: typical[key])
    apart = typical[high] / typical[low]
    found = (
        f"over the run, the median of {named(*high)} is {typical[high]:.3g}, that of {named(*low)} {typical[low]:.3g}: "
        f"{apart:.2g} times (even: at most {EVEN:g})"
    )
    return Condition(paper, condition, apart <= EVEN, found)


def _common_std(run: Run, table: dict[str, Row]) -> Condition:
    paper, condition = "WeSaR", "all stored matrices begin with one standard deviation"
    stds = {
        role: float(np.median(series.values[0])) / math.sqrt(table[role].fan_in * table[role].fan_out)
        for role, series in run.measured("norm").items()
        if role in table and series.steps[0] == 1
    }
    if len(stds) < 2:
        return _missing(paper, condition, "stability/norm of step 1, and the sizes in config.json")
    low, high = min(stds, key=lambda role: stds[role]), max(stds, key=lambda role: stds[role])
    found = f"from {stds[low]:.4g} ({low}) to {stds[high]:.4g} ({high})"
    return Condition(paper, condition, stds[high] <= COMMON * stds[low], found)


def _steady_norms(run: Run) -> Condition:
    paper, condition = "WeSaR", "stored norms of the last layer stay where they began (Figure 3)"
    norms = {role: series for role, series in run.measured("norm").items() if role in ("up_proj", "down_proj")}
    if not norms:
        return _missing(paper, condition, "stability/norm of up_proj and down_proj")
    growth = {role: float(series.values[-1, -1] / series.values[0, -1]) for role, series in norms.items()}
    found = ", ".join(f"{role} times {factor:.3g}" for role, factor in growth.items())
    return Condition(paper, condition, all(1 / STEADY < factor < STEADY for factor in growth.values()), found)


def std_of(run: Run, role: str, table: dict[str, Row]) -> Series | None:
    """The standard deviation of an effective matrix over steps, ‖W‖/√size."""
    norms = run.measured("norm_effective").get(role)
    if norms is None or role not in table:
        return None
    return Series(norms.steps, norms.values / math.sqrt(table[role].fan_in * table[role].fan_out))


def embedding_std(run: Run, table: dict[str, Row]) -> tuple[float, int, str] | None:
    """The standard deviation of the embeddings that enter the first block, the step, and what it was read off."""
    steps, values = run.one("stability/shortcut_std/embedding")
    if len(steps) and (steps[0] == 1 or run.saved.get("model.embedding.method") == "layer_norm"):
        return float(values[0]), int(steps[0]), "the shortcut"
    if run.saved.get("model.embedding.method") == "layer_norm":
        return None
    std = std_of(run, "embed_tokens", table)
    if std is not None:
        return float(std.values[0, 0]), int(std.steps[0]), "the effective matrix"
    steps, values = run.one("stability/tev_mean/embed_tokens")
    return (float(values[0]), int(steps[0]), "TEV") if len(steps) else None


def _large_shortcut(run: Run, table: dict[str, Row]) -> Condition:
    paper, condition = "Spike No More", "large shortcut: the standard deviation of the embedding is close to 1"
    found = embedding_std(run, table)
    if found is None:
        return _missing(paper, condition, "stability/norm_effective/embed_tokens with config.json, or shortcut_std")
    value, step, source = found
    return Condition(paper, condition, UNIT[0] <= value <= UNIT[1], f"{value:.3g} at step {step}, read off {source}")


def _small_attention(run: Run, table: dict[str, Row]) -> Condition:
    paper, condition = "Spike No More", "small sub-layers: s_O << s_x in the first layer"
    output, embedding = std_of(run, "o_proj", table), embedding_std(run, table)
    if output is None or embedding is None:
        return _missing(paper, condition, "stability/norm_effective/o_proj with config.json")
    part = float(output.values[0, 0]) / embedding[0]
    found = f"s_O / s_x = {float(output.values[0, 0]):.3g} / {embedding[0]:.3g} = {part:.3g} (at most {MUCH_LESS:g})"
    return Condition(paper, condition, part <= MUCH_LESS, found)


def _small_mlp(run: Run, table: dict[str, Row]) -> Condition:
    """Bound (15), 1 + s_1 s_2 (√d + √d_ffn)² / s_x', with s_x' >= s_x of the embedding where it isn't measured."""
    paper, condition = "Spike No More", "small sub-layers: s_1 s_2 << s_x' in the first layer"
    up, down, embedding = std_of(run, "up_proj", table), std_of(run, "down_proj", table), embedding_std(run, table)
    if up is None or down is None or embedding is None:
        return _missing(paper, condition, "stability/norm_effective of up_proj and down_proj with config.json")
    steps, after = run.measured("shortcut_std").get("attention"), "measured after attention"
    shortcut = float(steps.values[0, 0]) if steps is not None else embedding[0]
    after = after if steps is not None else "the embedding's"
    row = table["up_proj"]
    product = float(up.values[0, 0] * down.values[0, 0])
    bound = 1 + product * (math.sqrt(row.fan_in) + math.sqrt(row.fan_out)) ** 2 / shortcut
    found = (
        f"s_1 s_2 = {product:.3g}, s_x' = {shortcut:.3g} ({after}): bound (15) is {bound:.3g} (at most {SMALL_BOUND:g})"
    )
    return Condition(paper, condition, bound <= SMALL_BOUND, found)


def _jacobians(run: Run) -> Condition:
    paper, condition = "Spike No More", "Jacobians of the branches stay small, and under bounds (15) and (20)"
    norms, bounds = run.measured("jacobian"), run.measured("jacobian_bound")
    if not norms:
        return _missing(paper, condition, "stability/jacobian, of full measurements (stability.measure=full)")
    largest = {branch: float(np.nanmax(series.values)) for branch, series in norms.items()}
    texts = []
    for branch, series in norms.items():
        text = f"{branch}: at most {largest[branch]:.3g}"
        bound = bounds.get(branch)
        if bound is not None and bound.values.shape == series.values.shape:
            under = float(np.mean(series.values <= bound.values))
            text += (
                f", under its bound in {under:.0%} of the measurements (bound at most {np.nanmax(bound.values):.3g})"
            )
        texts.append(text)
    return Condition(paper, condition, all(value <= 2 * SMALL_BOUND for value in largest.values()), "; ".join(texts))


def _tev(run: Run) -> list[Condition]:
    found = []
    for role in ("embed_tokens", "lm_head"):
        paper, condition = "TEV", f"mu_TEV of {role} is steady (grows to at most {STEADY:g} times)"
        steps, values = run.one(f"stability/tev_mean/{role}")
        if not len(steps):
            found.append(_missing(paper, condition, f"stability/tev_mean/{role}"))
            continue
        growth = values[-1] / values[0]
        text = (
            f"{values[0]:.4g} at step {steps[0]}, {values[-1]:.4g} at step {steps[-1]}, at most {np.nanmax(values):.4g}"
        )
        found.append(
            Condition(paper, condition, bool(np.nanmax(values) / values[0] <= STEADY), f"{text} ({growth:.3g}x)")
        )
    return found


@dataclasses.dataclass(frozen=True)
class Advice:
    """A change of the config, and why."""

    keys: str
    why: str


def advice(run: Run, causes: list[Cause], found: list[Condition]) -> list[Advice]:
    """What would be changed, of the cause first, then of the papers; only what the saved config doesn't have yet."""
    broken = {condition.condition.split(":")[0]: condition for condition in found if condition.holds is False}
    papers: list[Advice] = []
    names = set(broken)
    if any(name.startswith(("update ratios", "all stored", "stored norms")) for name in names):
        papers.append(
            Advice(
                "reparam.method=wesar model.embedding.method=unit",
                "WeSaR stores all matrices with one standard deviation, which makes update ratios even; tune "
                "reparam.wesar.sigma together with optimizer.learning_rate",
            )
        )
    if "large shortcut" in names:
        papers.append(
            Advice("model.embedding.method=scaled", "Spike No More: times sqrt(d), the shortcut outweighs the branches")
        )
    if "small sub-layers" in names and run.saved.get("init.method") not in ("small", "megatron"):
        papers.append(Advice("init.method=megatron", "Spike No More: small matrices, o_proj and down_proj most of all"))
    if any(name.startswith("mu_TEV") for name in names):
        papers.append(
            Advice("reparam.method=mlra", "TEV: factorised queries, keys and values (this project's reading of MLRA)")
        )
    of_cause = [each for cause in causes[:1] for each in _against(run, cause)]
    return [each for each in [*of_cause, *papers] if not _is_so(run.saved, each.keys)]


def _against(run: Run, cause: Cause) -> list[Advice]:
    _, rates = run.one("train/learning_rate")
    peak = float(np.nanmax(rates)) if len(rates) else math.nan
    factor = 2 * max(1.5, growth(run)[0])
    lower = f"optimizer.learning_rate={peak / factor:.1g}" if math.isfinite(peak) else "optimizer.learning_rate=..."
    if cause.cause == "learning_rate":
        warmup = 2 * int(run.saved.get("optimizer.warmup", 0)) or 200
        return [
            Advice(lower, f"the peak of this run over {factor:.2g}, by how much matrices grew in {SPAN} steps"),
            Advice(f"optimizer.warmup={warmup}", "a longer warm-up, where the first updates are what is too large"),
            Advice("optimizer.rule.adamw.b2=0.95", "second moments that follow a change of the gradient sooner"),
        ]
    if cause.cause == "attention_logits":
        return [
            Advice("model.qk_norm=True", "queries and keys are normalised, so that their norms set no logit"),
            Advice("optimizer.projection.method=qk_clip", "the same without a new layer: weights of a head shrink"),
        ]
    if cause.cause == "embedding_scale":
        return [
            Advice("model.embedding.method=unit", "the embedding enters with a standard deviation of 1"),
            Advice("model.embedding.method=scaled", "times sqrt(d), as in Spike No More"),
        ]
    if cause.cause == "data":
        return [
            Advice("stability.on_spike=rollback", "goes back to before the batches and leaves them out"),
            Advice("stability.on_spike=skip", "leaves their updates out as they come"),
        ]
    if cause.cause == "nonfinite":
        return [Advice("stability.on_nonfinite=skip", "steps that aren't finite change nothing"), Advice(lower, "")]
    return []


def _is_so(saved: dict[str, Any], keys: str) -> bool:
    """Whether a config has all of "key=value key=value"."""
    pairs = [pair.partition("=") for pair in keys.split()]
    return all(key in saved and str(saved[key]) == value for key, _, value in pairs)
