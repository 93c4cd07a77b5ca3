"""Weight decay that is too strong: what decay takes each step outweighs what the gradient puts in.

Decay alone shrinks a matrix by 1 - η_t λ a step, so that it forgets within 1 / (η λ) steps (Wang and Aitchison 2024,
arXiv:2405.13698, who find the best of these times to be a good part of the run).
"""

from __future__ import annotations

import numpy as np

from jaxstab.diagnose.causes.base import Advice, Cause, Kind
from jaxstab.diagnose.history import History
from jaxstab.diagnose.normal import columns

FORGETS = 500.0  # steps: chosen; language models are trained with some 10⁴, and 700 is the shortest run configured here
TAKEN = 0.3  # decay summed over the steps so far, from which on it can be seen
SHARE = 0.5  # of the logarithm by which decay alone would have shrunk the median matrix: chosen
HALF = np.log(2)  # or this: in the end updates hold what decay takes, at whatever norm: chosen


def find(history: History) -> list[Cause]:
    if history.config is None:
        return []
    steps, taken = _taken(history)
    _, _, norms = columns(history.measured("norm"))
    most = float(np.max(np.diff(taken), initial=0.0))
    if len(norms) != len(steps) or most * FORGETS < 1 or taken[-1] < TAKEN:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        shrunk = -np.log(np.median(norms / norms[0], axis=1))
    if not shrunk[-1] > min(SHARE * taken[-1], HALF):
        return []
    step = int(steps[np.flatnonzero(taken > 0.1 * TAKEN)[0]])
    sentence = (
        f"decay takes {most:.2g} of every matrix a step, which forgets within {1 / most:.0f} steps; the median matrix "
        f"shrank to {np.exp(-shrunk[-1]):.2g} of its norm, to {np.exp(-taken[-1]):.2g} by decay alone"
    )
    return [Cause("weight_decay", None, None, None, step, int(steps[-1]), (sentence,), certainty="bound")]


def advice(history: History, cause: Cause) -> list[Advice]:
    return [Advice("optimizer.weight_decay=0.1", "what most language models are trained with (GPT-3, Llama)")]


WEIGHT_DECAY = Kind("weight decay is too strong", find, advice)


def _taken(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and what decay had taken before each, summed."""
    steps, rates = history.scalar("train/learning_rate")
    options = history.config.optimizer if history.config else None
    if options is None or not options.learning_rate or not len(steps):
        return steps, np.zeros(len(steps))
    per_step = rates * options.weight_decay / (options.learning_rate if options.independent_decay else 1.0)
    return steps, np.concatenate([[0.0], np.cumsum(per_step)[:-1]])
