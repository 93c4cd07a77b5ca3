"""Output logits that drifted: log Z went far from where it began (Wortsman et al. 2023; Chowdhery et al. 2022, PaLM).

The loss doesn't change when all logits of a token move together, so that nothing but z-loss holds log Z, the logarithm
of the softmax's normaliser. Logits of zero have log Z = log V.
"""

from __future__ import annotations

import math

import numpy as np

from jaxstab.diagnose.causes.base import Advice, Cause, Kind
from jaxstab.diagnose.causes.weights_changed import changed, drifts_logits, told
from jaxstab.diagnose.checks import Event
from jaxstab.diagnose.history import History

FAR = 5.0  # times log V: chosen; nine healthy runs of 150 to 220 steps stay under 1.6, with and without z-loss
LASTING = 20  # steps: chosen


def find(history: History) -> list[Cause]:
    """Drifts of lm_head from outside, then logits that went far by themselves."""
    changes = [each for each in history.once(changed) if drifts_logits(history, each)]
    return [_changed(history, each) for each in changes] + _far(history)


def _changed(history: History, event: Event) -> Cause:
    steps, log_z = history.scalar("train/log_z")
    within = log_z[(steps >= event.first - 1) & (steps <= event.last)]
    evidence = (*told(event), f"log Z went from {within[0]:.3g} to {within[-1]:.3g} over it")
    return Cause("output_logits", "lm_head", None, None, event.first, event.last, evidence, certainty="identity")


def _far(history: History) -> list[Cause]:
    steps, log_z = history.scalar("train/log_z")
    vocabulary = history.saved.get("model.vocabulary") or 32_000
    limit = FAR * math.log(vocabulary)
    with np.errstate(invalid="ignore"):
        is_far = np.abs(log_z) > limit
    if len(steps) < LASTING or not is_far[-LASTING:].all():
        return []
    near = np.flatnonzero(~is_far)
    step = int(steps[near[-1] + 1] if len(near) else steps[0])
    sentence = (
        f"log Z is {log_z[-1]:+.3g} at step {steps[-1]}, and beyond {limit:.3g}, {FAR:g} times log V, since step {step}"
    )
    unheld = not history.saved.get("train.z_loss", 1e-4)
    return [
        Cause(
            "output_logits",
            "lm_head",
            step=step,
            last=int(steps[-1]),
            evidence=(sentence,),
            certainty="bound" if unheld else "statistic",
        )
    ]


def advice(history: History, cause: Cause) -> list[Advice]:
    if cause.is_exact or history.saved.get("train.z_loss", 1e-4):
        return []
    return [Advice("train.z_loss=0.0001", "pulls log Z to zero (PaLM; Wortsman et al. 2023)")]


OUTPUT_LOGITS = Kind("the output logits drifted", find, advice)
