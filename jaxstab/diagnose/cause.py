"""The cause of a run's trouble, from what its measurements say, with the evidence.

What the optimizer does to a matrix W is bounded by what is measured of it: from one step to the next ‖W‖ changes by no
more than ‖ΔW‖. What goes beyond that was done from outside. A batch shows in loss and gradient in the step that reads
it, before any weight has answered. A learning rate shows in all matrices at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from jaxstab.diagnose.series import TO_SD, Run, Series, events, usual
from jaxstab.table import Row

CAUSES = {
    "none": "nothing out of the ordinary",
    "weights_scaled": "one matrix was changed by something else than its update",
    "attention_logits": "queries and keys of one layer blew up",
    "embedding_scale": "the embedding began too small",
    "learning_rate": "the learning rate is too high",
    "data": "a stretch of batches unlike the others",
    "nonfinite": "something was not finite",
}


@dataclasses.dataclass(frozen=True)
class Cause:
    """What began it.

    Attributes:
      cause: one of CAUSES.
      role, layer, head: where, as far as the cause has a place and it is known; layers and heads count from 0.
      step: the first step that shows it; 0 where none does.
      evidence: sentences.
    """

    cause: str
    role: str | None = None
    layer: int | None = None
    head: int | None = None
    step: int = 0
    evidence: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where, in words: "q_proj of layer 3, head 1"."""
        parts = [self.role or "", f"layer {self.layer}" if self.layer is not None else ""]
        place = " of ".join(part for part in parts if part)
        return place + (f", head {self.head}" if self.head is not None else "")


ECHO = 60  # steps after a change of weights in which a jump of the loss is its doing


def find_causes(run: Run) -> list[Cause]:
    """Causes that the evidence bears out, what it bears out best first; [Cause("none")] where there is none.

    A change of weights explains what follows it. So does a learning rate that is too high, whose spikes look like
    data's.
    """
    grown, odd = growth(run), odd_batches(run)
    fast = too_fast(run, grown) if grown[0] >= TOO_FAST else [] if odd else loss_rises(run)
    weights = [*changed_at_start(run), *changed_weights(run, sure=grown[0] > VIOLENT)]
    odd = [each for each in odd if not any(0 <= each.step - before.step <= ECHO for before in weights)]
    found = [*weights, *fast, *odd, *grown_logits(run), *not_finite(run)]
    return found or [Cause("none", evidence=("no measurement left what is usual in a way that a cause is known for",))]


# -- weights that something else than the optimizer changed

WINDOW = 32
BEYOND = 1.05  # of ‖ΔW‖: rounding
WITHIN = 0.5  # of ‖ΔW‖, which is mostly across W: below it no change is looked at
LEAST_CHANGE = 2e-3  # of ‖W‖, nor below that
UNUSUAL = 15.0  # robust standard deviations


@dataclasses.dataclass(frozen=True)
class Jump:
    """A matrix whose norm changed between the step before and this one."""

    step: int
    role: str
    layer: int | None
    before: float
    after: float
    ratio: float
    beyond: bool

    @property
    def factor(self) -> float:
        return self.after / self.before

    @property
    def size(self) -> float:
        return abs(math.log(self.factor))

    def __str__(self) -> str:
        why = "no update of that size does that" if self.beyond else "unlike any change of it before"
        return (
            f"{named(self.role, self.layer)}: its norm went from {self.before:.4g} to {self.after:.4g} "
            f"(x{self.factor:.3g}) between steps {self.step - 1} and {self.step}, where the update was "
            f"{self.ratio:.2g} of it; {why}"
        )


def named(role: str, layer: int | None) -> str:
    return role if layer is None else f"{role} of layer {layer}"


def jumps(run: Run) -> list[Jump]:
    """Changes of a matrix that its updates don't explain, the largest of each step first.

    A change is beyond the update where |‖W'‖ - ‖W‖| > ‖ΔW‖. A smaller one is told by being unlike the changes of that
    matrix before and after, where no more than a tenth of all matrices changed in an unusual way at that step.
    """
    found: dict[tuple[int, str, int | None], Jump] = {}
    matrices = 0
    for norm, ratio in (("norm", "update_ratio"), ("norm_effective", "update_ratio_effective")):
        ratios = run.measured(ratio)
        matrices = max(matrices, sum(series.layers for series in run.measured(norm).values()))
        for role, series in run.measured(norm).items():
            if role in ratios:
                for jump in _jumps_of(role, series, ratios[role], run):
                    key = jump.step, jump.role, jump.layer
                    if key not in found or not found[key].beyond:
                        found[key] = jump
    at: dict[int, list[Jump]] = {}
    for jump in found.values():
        at.setdefault(jump.step, []).append(jump)
    few = max(2, matrices // 10)
    kept = []
    for step in sorted(at):
        beyond = [jump for jump in at[step] if jump.beyond]
        kept += sorted(at[step] if len(at[step]) <= few else beyond, key=lambda jump: -jump.size)
    return kept


def _jumps_of(role: str, norms: Series, ratios: Series, run: Run) -> Iterable[Jump]:
    steps, at, in_ratios = np.intersect1d(norms.steps[:-1], ratios.steps, return_indices=True)
    before, after, ratio = norms.values[at], norms.values[at + 1], ratios.values[in_ratios]
    follows = (norms.steps[at + 1] == steps + 1) & ~np.isin(steps + 1, list(run.seams))
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.where(follows[:, None], np.log(after / before), np.nan)
        moved = np.abs(after - before) / before
        beyond = follows[:, None] & (moved > BEYOND * ratio + LEAST_CHANGE)
        candidate = follows[:, None] & (moved > WITHIN * ratio + LEAST_CHANGE)
    if run.saved.get("optimizer.projection.method") == "qk_clip" and role in ("q_proj", "k_proj"):
        beyond &= change > 0  # the projection shrinks them
        candidate &= change > 0
    rows = np.flatnonzero(candidate.any(axis=1))
    center, spread = usual(change, rows, WINDOW, 6)
    floor = np.maximum(0.01 * ratio[rows], 1e-4)
    off = np.abs(change[rows] - center)
    following = np.concatenate([change[1:], np.full_like(change[:1], np.nan)])[rows]  # updates go on, a hand does not
    unusual = (off > UNUSUAL * np.maximum(spread, floor)) & (np.abs(following - center) < 0.5 * off)
    for row, is_unusual in zip(rows, unusual & candidate[rows], strict=True):
        for layer in np.flatnonzero(is_unusual | beyond[row]):
            yield Jump(
                step=int(steps[row]) + 1,
                role=role,
                layer=int(layer) if norms.layers > 1 or _stacked(role) else None,
                before=float(before[row, layer]),
                after=float(after[row, layer]),
                ratio=float(ratio[row, layer]),
                beyond=bool(beyond[row, layer]),
            )


def _stacked(role: str) -> bool:
    return not role.startswith(("embed_", "lm_head"))


def changed_weights(run: Run, sure: bool = False) -> list[Cause]:
    """Jumps as causes: of one matrix, or of a layer's queries and keys; `sure` takes those beyond the update alone."""
    found = [jump for jump in jumps(run) if jump.beyond or not sure]
    by_step: dict[int, list[Jump]] = {}
    for jump in found:
        by_step.setdefault(jump.step, []).append(jump)
    return [_of_jumps(run, by_step[step]) for step in sorted(by_step)]


def _of_jumps(run: Run, together: list[Jump]) -> Cause:
    step, largest = together[0].step, together[0]
    evidence = [str(jump) for jump in together[:4]]
    layers = {jump.layer for jump in together if jump.role == "q_proj"}
    layers &= {jump.layer for jump in together if jump.role == "k_proj"}
    if layers and largest.role in ("q_proj", "k_proj"):
        layer = largest.layer if largest.layer in layers else min(layers, key=lambda each: each or 0)
        head, sentences = _head(run, step, layer)
        return Cause("attention_logits", "q_proj", layer, head, step, (*evidence, *sentences))
    if len(together) > 4:
        evidence.append(f"{len(together)} matrices changed so at that step")
    return Cause("weights_scaled", largest.role, largest.layer, None, step, tuple(evidence))


def changed_at_start(run: Run) -> list[Cause]:
    """Matrices that began at another scale than their initialization gives, or than the other layers' did."""
    table = run.table()
    off: list[tuple[float, str, int | None, str]] = []
    for role, series in run.measured("norm_effective").items():
        if series.steps[0] != 1:
            continue
        expected, tolerance, what = _expected_norm(series, table.get(role))
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = series.values[0] / expected
        for column in np.flatnonzero(np.abs(np.log(factors)) > tolerance):
            place = int(column) if _stacked(role) else None
            text = f"{named(role, place)} began with {factors[column]:.3g} times the norm {what}"
            off.append((float(factors[column]), role, place, text))
    small = [each for each in off if each[1] == "embed_tokens" and each[0] < 1]
    relative = _embedding_to_others(run, table)
    if small or relative:
        evidence = tuple([text for *_, text in small] + relative)
        return [Cause("embedding_scale", "embed_tokens", step=1, evidence=evidence)]
    off.sort(key=lambda each: -abs(math.log(each[0])))
    if not off:
        return []
    _, role, layer, _ = off[0]
    evidence = tuple(text for *_, text in off[:4])
    pair = {(r, at) for _, r, at, _ in off}
    if {("q_proj", layer), ("k_proj", layer)} <= pair and role in ("q_proj", "k_proj"):
        head, sentences = _head(run, 1, layer)
        return [Cause("attention_logits", "q_proj", layer, head, 1, (*evidence, *sentences))]
    return [Cause("weights_scaled", role, layer, None, 1, evidence)]


def _expected_norm(series: Series, row: Row | None) -> tuple[np.ndarray, float, str]:
    """The norm at initialization, the largest usual |log| of what is off it, and where it comes from."""
    if row is not None and row.std is not None and np.all(np.asarray(row.std) > 0):
        size = row.fan_in * row.fan_out
        expected = np.broadcast_to(np.asarray(row.std, float) * math.sqrt(size), (series.layers,))
        return expected, 0.01 + 5 / math.sqrt(2 * size), "that its initial scale gives"
    if series.layers < 3:
        return np.full(series.layers, np.nan), math.inf, ""
    median = np.median(series.values[0])
    spread = np.median(np.abs(np.log(series.values[0] / median))) if median > 0 else math.inf
    return np.full(series.layers, median), 0.05 + 10 * spread, "that the median layer has"


SMALL_EMBEDDING = 0.3


def _embedding_to_others(run: Run, table: dict[str, Row]) -> list[str]:
    """Whether the embedding began far below the matrices that read it, by standard deviation."""
    norms, row = run.measured("norm_effective"), table.get("embed_tokens")
    if row is None or "embed_tokens" not in norms or norms["embed_tokens"].steps[0] != 1:
        return []
    if run.saved.get("model.embedding.method") == "layer_norm":
        return []

    def std(role: str) -> float:
        return float(np.median(norms[role].values[0]) / math.sqrt(table[role].fan_in * table[role].fan_out))

    readers = [std(role) for role in ("q_proj", "k_proj", "v_proj", "up_proj") if role in norms and role in table]
    if not readers or std("embed_tokens") > SMALL_EMBEDDING * np.median(readers):
        return []
    return [
        f"the embedding began with a standard deviation of {std('embed_tokens'):.3g}, the matrices that read it with "
        f"{np.median(readers):.3g}: each branch then outweighs the shortcut, and an update is large beside a row"
    ]


# -- attention logits


def logits(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the largest attention logits [n, L, H] of full measurements; empty where there are none."""
    heads = run.measured("max_attention_logit")
    if not heads:
        return np.zeros(0, np.int64), np.zeros((0, 0, 0))
    first = next(iter(heads.values()))
    same = [series for series in heads.values() if series.values.shape == first.values.shape]
    return first.steps, np.stack([series.values for series in same], axis=-1)


def _head(run: Run, step: int, layer: int | None) -> tuple[int | None, list[str]]:
    """The head of a layer whose logits grew most over a step, by the full measurements around it."""
    steps, values = logits(run)
    after = int(np.searchsorted(steps, step))
    if layer is None or after >= len(steps):
        return None, []
    now = values[after, layer]
    before = values[after - 1, layer] if after else np.median(values[after], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.abs(np.log(now / before))
    if not np.isfinite(growth).any():
        return None, []
    head = int(np.nanargmax(growth))
    return head, [
        f"head {head} of layer {layer} has a largest attention logit of {now[head]:.3g} at step {steps[after]}, "
        f"{before[head]:.3g} before; the layer's others changed by x{np.exp(np.median(np.delete(growth, head))):.2g}"
        if len(growth) > 1
        else f"its largest attention logit is {now[head]:.3g} at step {steps[after]}, {before[head]:.3g} before"
    ]


def grown_logits(run: Run) -> list[Cause]:
    """A head whose attention logits are over 50 and five times those of the median head (Wortsman et al. 2023)."""
    steps, values = logits(run)
    for step, now in zip(steps, values, strict=True):
        if not np.isfinite(now).any():
            continue
        layer, head = np.unravel_index(np.nanargmax(now), now.shape)
        largest, median = float(now[layer, head]), float(np.nanmedian(now))
        if largest > max(50.0, 5 * median):
            sentence = (
                f"the largest attention logit of head {head} in layer {layer} is {largest:.3g} at step {step}, "
                f"the median head's {median:.3g}"
            )
            return [Cause("attention_logits", "q_proj", int(layer), int(head), int(step), (sentence,))]
    return []


# -- a learning rate that is too high

SPAN = 50
TOO_FAST = math.sqrt(1.5)
VIOLENT = 3.0


def growth(run: Run) -> tuple[float, int, int]:
    """The most that the median matrix grew over 50 steps, ‖W̄‖ to ‖W̄‖, and the first and last of them.

    (1, 0, 0) where norms of too few steps are there.
    """
    steps, size = _log_norms(run)
    span = min(SPAN, len(steps) - 1)
    if span < 1:
        return 1.0, 0, 0
    grown = np.median(size[span:] - size[:-span], axis=1)
    at = int(np.where(np.isfinite(grown), grown, -np.inf).argmax())
    return math.exp(grown[at]), int(steps[at]), int(steps[at + span])


def _log_norms(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and log ‖W̄‖ [n, matrices], or log ‖W‖ where that is all there is."""
    norms = run.measured("norm_effective") or run.measured("norm")
    if not norms:
        return np.zeros(0, np.int64), np.zeros((0, 0))
    steps = next(iter(norms.values())).steps
    columns = [series.values for series in norms.values() if np.array_equal(series.steps, steps)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return steps, np.log(np.concatenate(columns, axis=1))


def too_fast(run: Run, grown: tuple[float, int, int]) -> list[Cause]:
    """Updates of 50 steps that are of the size of what was in most matrices before: median ‖W̄‖ times √1.5 or more.

    Updates that add up like independent ones make ‖W‖² grow by the sum of ‖ΔW‖²: at √1.5, by half of what was there.
    Small models grow by 1.05 to 1.12 at rates that they train well with, and by 1.3 where they began to spike.
    """
    factor, first, last = grown
    steps, size = _log_norms(run)
    typical = np.median(size, axis=1)
    onset = int(steps[typical - typical[0] > 0.5 * math.log(TOO_FAST)][0])
    sentence = (
        f"between steps {first} and {last} the median matrix grew to {factor:.3g} times its norm: its updates add up "
        f"to {math.sqrt(factor**2 - 1):.2g} times what was there"
    )
    return [Cause("learning_rate", step=onset, evidence=(sentence, *_rate(run, onset)))]


def _rate(run: Run, step: int) -> list[str]:
    steps, rates = run.one("train/learning_rate")
    at = int(np.searchsorted(steps, step))
    return [f"the learning rate is {rates[at]:.3g} then, {np.nanmax(rates):.3g} at its peak"] if at < len(steps) else []


def loss_rises(run: Run) -> list[Cause]:
    """A loss that rises for good: over its least by 0.5 nats in the last fifth. For runs whose norms say nothing of a
    rate that is too high, and whose loss jumped at no step."""
    steps, loss = run.one("train/loss")
    keep = np.isfinite(loss)
    steps, loss = steps[keep], loss[keep]
    if len(loss) < 60:
        return []
    smooth = np.array([np.median(loss[max(0, i - 10) : i + 11]) for i in range(len(loss))])
    end = float(np.median(loss[-len(loss) // 5 :]))
    least = int(smooth.argmin())
    if end > smooth[least] + 0.5:
        sentence = (
            f"the loss rises from {smooth[least]:.3f} around step {steps[least]} to {end:.3f} and stays there, with no "
            "one step at which it jumped"
        )
        return [Cause("learning_rate", step=int(steps[least]), evidence=(sentence, *_rate(run, int(steps[least]))))]
    return []


# -- data

LEAST_JUMP = 0.5  # nats, of a stretch
LEAST_OF_ONE = 1.0  # nats, of a single batch: healthy text has batches that jump by more than half a nat
FAR = 6.0  # robust standard deviations
LEAST_KNOWN = 32  # losses, before which none is usual: the first fall is steep and rarely smooth


def odd_batches(run: Run) -> list[Cause]:
    """Stretches whose loss is far from that of the batches before, from one step to the next.

    It comes back after (by 70% within 60 steps), unless the run ends before; a single step takes a larger jump, and
    another gradient.
    """
    steps, loss = run.one("train/loss")
    _, norm = run.one("train/grad_norm")
    if len(loss) < 20 or len(norm) != len(loss):
        return []
    flags, center, spread = _apart(loss)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_norm = np.log(norm)
    found = []
    for first, last in events(flags, steps, gap=3):
        at, end = int(np.searchsorted(steps, first)), int(np.searchsorted(steps, last))
        jump = loss[at] - center[at]
        usual_norm, spread_norm = (part[0] for part in usual(log_norm, np.array([at]), 48, 8))
        norm_z = (log_norm[at] - usual_norm) / max(spread_norm, 0.1)
        after = loss[end + 1 : end + 61]
        recovers = len(after) == 0 or np.nanmin(np.abs(after - center[at])) < max(0.25, 0.3 * abs(jump))
        if not recovers or (last == first and (abs(norm_z) < 3 or abs(jump) < LEAST_OF_ONE)):
            continue
        deviation = f"{jump / spread[at]:+.0f} SD"
        sentences = [
            f"the loss of step {first} is {loss[at]:.3f}, where {center[at]:.3f} is usual ({deviation})",
            f"the gradient's norm is {norm[at]:.3g} there ({norm_z:+.0f} SD of its logarithm)",
            f"it stays apart until step {last}" + (", and comes back" if len(after) else ", where the run ends so far"),
        ]
        found.append(Cause("data", step=first, evidence=tuple(sentences)))
    return found


def _apart(loss: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which losses are far from those before, what was usual then, and its spread.

    What is flagged is no part of what is usual for the next.
    """
    kept: list[float] = []
    flags, centers, spreads = np.zeros(len(loss), bool), np.full(len(loss), np.nan), np.full(len(loss), np.nan)
    in_a_row = 0
    for i, value in enumerate(loss):
        if len(kept) >= LEAST_KNOWN:
            centers[i] = np.median(kept[-12:])
            # From one value to the next, so that the fall of the loss itself is no spread.
            spreads[i] = max(TO_SD * float(np.median(np.abs(np.diff(kept[-48:])))) / math.sqrt(2), 0.05)
            apart = value - centers[i] if value > centers[i] else 0.5 * (centers[i] - value)  # it falls early on
            flags[i] = apart > max(FAR * spreads[i], LEAST_JUMP)
        in_a_row = in_a_row + 1 if flags[i] else 0
        if np.isfinite(value) and (not flags[i] or in_a_row > 60):  # a change for good is the new level
            kept.append(float(value))
    return flags & np.isfinite(loss), centers, spreads


# -- what isn't finite


def not_finite(run: Run) -> list[Cause]:
    """The first step that wasn't finite, and the matrices whose gradient wasn't, where not all were."""
    bad = [
        (int(steps[~np.isfinite(values)][0]), name)
        for name in ("train/loss", "train/grad_norm", "train/update_norm")
        for steps, values in [run.one(name)]
        if not np.isfinite(values).all()
    ]
    steps, finite = run.one("train/finite")
    bad += [(int(step), "the step") for step in steps[finite == 0][:1]]
    where: list[tuple[int, float, str, int]] = []
    parts = run.measured("nonfinite_fraction")
    for role, series in parts.items():
        for row, layer in np.argwhere(series.values > 0)[:: max(1, series.layers)][:64]:
            where.append((int(series.steps[row]), -float(series.values[row, layer]), role, int(layer)))
    if not bad and not where:
        return []
    step = min([step for step, _ in bad] + [step for step, *_ in where])
    names = sorted({name.removeprefix("train/") for at, name in bad if at == step})
    there = [
        (role, int(layer))
        for role, series in parts.items()
        for layer in np.flatnonzero(series.values[series.steps == step].sum(axis=0) > 0)
    ]
    total = sum(series.layers for series in parts.values())
    sentence = f"not finite at step {step}: {', '.join(names) or 'entries of the gradient'}"
    if there and len(there) <= total // 4:
        role, layer = there[0]
        listed = ", ".join(named(r, at if _stacked(r) else None) for r, at in there[:6])
        place = layer if _stacked(role) else None
        return [
            Cause("nonfinite", role, place, None, step, (sentence, f"entries not finite in the gradient of {listed}"))
        ]
    return [Cause("nonfinite", step=step, evidence=(sentence,))]
