"""A stretch of batches unlike the others: its loss is far off in the very step that reads it, and comes back.

A batch that isn't that of its place in the data is told by its digest. Otherwise a batch shows in loss and gradient
before any weight has answered it, and the weights of a healthy run then forget it.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from jaxstab.diagnose.causes.bad_resume import read_elsewhere
from jaxstab.diagnose.causes.base import Advice, Cause, Kind
from jaxstab.diagnose.checks import compared_batches, records_from
from jaxstab.diagnose.history import History, events, usual
from jaxstab.numerics import robust_spread

# All of these are this project's. Where "measured" stands, the runs are those of docs/results/diagnose.md.
FAR = 6.0  # robust standard deviations, as many as SkipStep's
LEAST_JUMP = 0.5  # nats, of a stretch: chosen, more than the noise of small batches of healthy text
LEAST_OF_ONE = 1.0  # nats, of a single batch: measured, a record of phonetic transcription jumps by 0.6 in healthy runs
LEAST_KNOWN = 32  # losses, fewer of which make no usual level: measured, the first fall is steep, rarely smooth
LEAST_LOSSES = 20  # chosen: a history of fewer is not examined
LEAST_SPREAD = 0.05  # nats: chosen, below the noise of any batch
LEVEL, NOISE = 12, 48  # chosen: losses that give the usual level, and its spread
NEW_LEVEL = 60  # steps: chosen, what stays away for longer is a change for good
RETURNED = 0.3  # of the jump, or 0.25 nats: chosen, how near its old level the loss is within NEW_LEVEL steps
ABRUPT = 0.6  # of the median distance in the stretch: chosen, what its first step must have; a batch shows at once
GRADIENT = 3.0  # robust standard deviations of log ‖g‖: chosen, a single odd batch shows in its gradient too


# Of a single batch whose digest is that of its place: two nats, since every corpus has records unlike its others, and
# they are its own.
LEAST_OF_OWN = 2.0
ORDINARY = 6.0  # robust standard deviations of the loss of token frequencies: within, a batch has ordinary tokens


def find(history: History) -> list[Cause]:
    """Batches that were replaced, then those that stand out and weren't."""
    replaced = history.once(_replaced)
    known = {step for each in replaced for step in range(each.step - 2, each.last + 3)}
    return replaced + [each for each in history.once(odd_batches) if each.step not in known]


def advice(history: History, cause: Cause) -> list[Advice]:
    if cause.is_exact:
        return []
    return [
        Advice("stability.on_spike=rollback", "goes back to before the batches and leaves them out"),
        Advice("stability.on_spike=skip", "leaves their updates out as they come"),
    ]


DATA = Kind(
    "a stretch of batches unlike the others",
    find,
    advice,
    remedy="Go back to the checkpoint before those steps, and look at what fed the batches.",
)


def _replaced(history: History) -> list[Cause]:
    """Stretches of steps that were given other records than those of their place."""
    elsewhere = history.once(read_elsewhere)
    replaced = history.once(compared_batches).replaced
    origins = {each.step: each.origin for each in replaced if each.step not in elsewhere}
    steps = np.array(sorted(origins), np.int64)
    causes = []
    for first, last in events(np.ones(len(steps), bool), steps, gap=3):
        within = steps[(steps >= first) & (steps <= last)]
        known = [origin for step in within if (origin := origins[int(step)]) is not None]
        what = "none of which is another step's"
        if known:
            what = f"{len(known)} of them {records_from(history, known[0])}"
        sentence = f"{len(within)} steps from {first} to {last} were given batches other than their own, {what}"
        evidence = (sentence, *_tokens(history, first, last))
        causes.append(Cause("data", step=first, last=last, evidence=evidence, certainty="identity"))
    return causes


def _tokens(history: History, first: int, last: int) -> list[str]:
    """A sentence about how usual the tokens of a stretch are, where they aren't."""
    far, values, center = _token_deviation(history, first, last)
    if not far > ORDINARY:
        return []
    return [f"token frequencies alone have a loss of {values:.3g} there, where {center:.3g} is usual ({far:.0f} SD)"]


def _token_deviation(history: History, first: int, last: int) -> tuple[float, float, float]:
    """How far the unigram loss of a stretch is from that of the steps before: robust SDs, its median, the usual one."""
    steps, losses = history.scalar("train/unigram_loss")
    at = np.flatnonzero((steps >= first) & (steps <= last))
    if not len(at):
        return math.nan, math.nan, math.nan
    center, spread = (float(part[0]) for part in usual(losses, at[:1], 64, 16))
    value = float(np.median(losses[at]))
    return abs(value - center) / max(spread, 1e-3), value, center


def odd_batches(history: History) -> list[Cause]:
    """Stretches whose loss is far from that of the batches before, from one step to the next.

    The loss comes back after them, unless the run ends before. For a single step the jump has to be larger, and the
    gradient unusual too.
    """
    steps, loss = history.scalar("train/loss")
    norm_steps, norm = history.scalar("train/grad_norm")
    if len(loss) < LEAST_LOSSES or not np.array_equal(steps, norm_steps):
        return []
    flags, center, spread = _far_from_before(loss)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_norm = np.log(norm)
    least_of_one = LEAST_OF_OWN if "train/batch_digest" in history.series else LEAST_OF_ONE
    causes = []
    for first, last in events(flags, steps, gap=3 * history.stride):
        at, end = int(np.searchsorted(steps, first)), int(np.searchsorted(steps, last))
        jump = loss[at] - center[at]
        usual_norm, spread_norm = (part[0] for part in usual(log_norm, np.array([at]), 48, 8))
        norm_z = (log_norm[at] - usual_norm) / max(spread_norm, 0.1)
        after = loss[end + 1 : end + 1 + NEW_LEVEL]
        if not _returns(after, center[at], jump) or jump / np.median(loss[at : end + 1] - center[at]) < ABRUPT:
            continue
        if last == first and (abs(norm_z) < GRADIENT or abs(jump) < least_of_one):
            continue
        if _token_deviation(history, first, last)[0] < ORDINARY:
            continue
        loss_z = f"{jump / spread[at]:+.0f} SD"
        gradient = f" ({norm_z:+.0f} SD of its logarithm)" if np.isfinite(norm_z) else ""
        sentences = (
            f"the loss of step {first} is {loss[at]:.3f}, where {center[at]:.3f} is usual ({loss_z})",
            f"the gradient's norm is {norm[at]:.3g} there{gradient}",
            f"it stays apart until step {last}" + (", and comes back" if len(after) else ", where the run ends so far"),
        )
        causes.append(Cause("data", step=first, last=last, evidence=sentences))
    return causes


def _returns(after: Float[np.ndarray, " n"], center: float, jump: float) -> bool:
    """Whether the loss comes back to near its level before the stretch; True where the run ends with the stretch."""
    finite = after[np.isfinite(after)]
    if not len(after):
        return True
    return bool(len(finite)) and float(np.abs(finite - center).min()) < max(0.25, RETURNED * abs(jump))


def _far_from_before(loss: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which losses are far from those before, what was usual then, and its spread.

    Flagged losses don't count towards what is usual for later ones.
    """
    flags, centers, spreads = np.zeros(len(loss), bool), np.full(len(loss), np.nan), np.full(len(loss), np.nan)
    ordinary: list[float] = []
    in_a_row = 0
    for i, value in enumerate(loss):
        if len(ordinary) >= LEAST_KNOWN:
            centers[i] = np.median(ordinary[-LEVEL:])
            # The spread of changes from value to value, to which the fall of the loss itself adds little.
            spreads[i] = max(float(robust_spread(np.diff(ordinary[-NOISE:]))) / math.sqrt(2), LEAST_SPREAD)
            distance = value - centers[i] if value > centers[i] else 0.5 * (centers[i] - value)  # a loss falls early on
            flags[i] = distance > max(FAR * spreads[i], LEAST_JUMP)
        in_a_row = in_a_row + 1 if flags[i] else 0
        if np.isfinite(value) and (not flags[i] or in_a_row > NEW_LEVEL):  # a change for good is the new level
            ordinary.append(float(value))
    return flags & np.isfinite(loss), centers, spreads
