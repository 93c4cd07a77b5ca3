"""Random histories, most of them odd: what no run should leave, and some run will.

    python -m tests.diagnose.fuzz 2000

diagnoses as many, and prints the seeds of those that end in a traceback or a warning.
"""

from __future__ import annotations

import collections
import functools
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

from jaxstab.config import flatten
from jaxstab.diagnose.checks import expected_rate
from jaxstab.diagnose.history import History, Series
from tests.diagnose.conftest import config

ROLES = ("embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head")
ODD = (0.0, np.nan, np.inf, -np.inf, 1e-38, 1e38, -1.0)
SHAPES = ("steady", "constant", "zero", "shrinks then grows", "grows", "shrinks", "jumps", "noise", "odd", "all odd")
CONFIGS = (
    {},
    {"optimizer__projection__method": "qk_clip"},
    {"model__embedding__method": "layer_norm", "reparam__method": "rezero"},
    {"reparam__method": "wesar", "model__embedding__method": "unit"},
    {"model__tie_embeddings": True, "optimizer__warmup": 0},
    {"optimizer__weight_decay": 5.0},
)


@functools.cache
def saved(which: int) -> dict:
    return flatten(config(**CONFIGS[which]))


def random_history(seed: int) -> History:
    """A history that is a function of the seed."""
    dice = np.random.default_rng(seed)
    layers, heads = int(dice.choice([1, 2, 5])), int(dice.choice([1, 4]))
    steps = np.arange(1, 1 + int(dice.choice([1, 2, 3, 24, 144, 144]))) + int(dice.choice([0, 0, 0, 7]))
    if dice.random() < 0.3:  # gaps
        steps = steps + 3 * (steps // 10)
    values = functools.partial(_values, dice, float(dice.choice([0.5, 0.9, 0.98, 1.0])))
    series = {"train/loss": values(steps, 1)}
    scalars = ("grad_norm", "update_norm", "learning_rate", "finite", "spike", "skipped", "log_z", "unigram_loss")
    for name in scalars:
        if dice.random() < (0.2 if name == "learning_rate" else 0.8):
            series[f"train/{name}"] = values(some(dice, steps), 1)
    if dice.random() < 0.3:
        asked = dice.integers(0, 1000, (len(steps), 1)).astype(float)
        given = np.where(dice.random((len(steps), 1)) < 0.02, asked[int(dice.integers(len(steps)))], asked)
        series["train/batch_digest"] = Series(steps, given)
    if dice.random() < 0.3:
        shift = int(dice.choice([0, 0, 5]))
        series["train/position"] = Series(steps, np.float64(32 * (steps - 1 + shift))[:, None])
    if dice.random() < 0.5:
        series |= account(dice, steps, layers)
    together = str(dice.choice(SHAPES)) if dice.random() < 0.4 else ""  # what all norms do
    for measurement in ("norm", "norm_effective", "update_ratio", "update_ratio_effective", "grad_norm"):
        if dice.random() < 0.85:
            own = some(dice, steps)
            shape = together if measurement.startswith("norm") else ""
            least = float(dice.choice([0.0, 0.1, 0.1])) if measurement.startswith("update_ratio") else 0.0
            for role in ROLES:
                if dice.random() < 0.9:
                    measured = values(own, columns(role, layers), shape)
                    series[f"stability/{measurement}/{role}"] = Series(own, least + np.abs(measured.values))
    for role in ROLES:
        if dice.random() < 0.5:
            fraction = np.where(dice.random((len(steps), columns(role, layers))) < 0.01, dice.choice([0.5, np.nan]), 0)
            series[f"stability/nonfinite_fraction/{role}"] = Series(steps, fraction)
    full = some(dice, steps[:: int(dice.choice([1, 5, 25]))])
    for measurement in ("max_attention_logit", "attention_entropy"):
        for head in range(heads if dice.random() < 0.8 else 0):
            series[f"stability/{measurement}/{head}"] = values(full, layers)
    for measurement in ("shortcut_std", "jacobian", "jacobian_bound"):
        for branch in ("attention", "mlp"):
            if dice.random() < 0.7:
                series[f"stability/{measurement}/{branch}"] = values(full, layers)
    for name in ("shortcut_std/embedding", "tev_mean/embed_tokens", "tev_mean/lm_head"):
        if dice.random() < 0.7:
            series[f"stability/{name}"] = values(some(dice, steps), 1)
    if dice.random() < 0.5:
        series["stability/gradient_variance/up_proj"] = values(full, layers)
        series["stability/tev_histogram/embed_tokens"] = values(full, 3)
        series["stability/tev_histogram_edges/embed_tokens"] = Series(full, np.tile([0, 0.1, 0.2, 0.3], (len(full), 1)))
    if dice.random() < 0.3:  # odd batches
        at, length = int(dice.integers(len(steps))), int(dice.choice([1, 5, 100]))
        series["train/loss"].values[at : at + length] += float(dice.choice([-2.0, 3.0, 1e6]))
    seams = frozenset(int(step) for step in steps[1:] if dice.random() < 0.02)
    which = int(dice.integers(len(CONFIGS) + 1))
    if dice.random() < 0.1:
        series, which = plain(dice), len(CONFIGS) - 1
    history = History(Path("runs/odd"), series, seams, saved(which) if which < len(CONFIGS) else {})
    if history.saved and dice.random() < 0.7:
        steps = series["train/loss"].steps
        series["train/learning_rate"] = Series(steps, expected_rate(history, steps)[:, None])
    return history


def plain(dice: np.random.Generator) -> dict[str, Series]:
    """A loss that leaves its trend for a while or doesn't, and matrices that shrink as decay says or don't."""
    steps, t = np.arange(8, 152), np.linspace(0, 1, 144)  # late: nothing is told of how it began
    hump = float(dice.choice([0.0, 3.0])) * np.sin(np.pi * np.clip(4 * t - 2.5, 0, 1))
    norms = np.exp(-float(dice.choice([0.0, 2.0])) * t) * np.ones((5, 1))
    return {
        "train/loss": Series(steps, (3 - t + hump + 0.05 * dice.standard_normal(144))[:, None]),
        "train/grad_norm": Series(steps, np.ones((144, 1))),
        "stability/norm/up_proj": Series(steps, norms.T),
        "stability/update_ratio/up_proj": Series(steps, np.full((144, 5), 0.05)),
    }


def account(dice: np.random.Generator, steps: np.ndarray, layers: int) -> dict[str, Series]:
    """Sketches and moments that hold what they should in most places, or in none."""
    made, chance = {}, float(dice.choice([0.0, 0.001, 0.01, 0.9]))
    for role in (*ROLES, "layers/input_layernorm/scale", "norm/scale"):
        shape = (len(steps), columns(role, layers))
        left = dice.standard_normal(shape)
        begun = np.concatenate([left[:1], left[:-1]])
        odd = np.where(dice.random(shape) < chance, dice.choice(ODD, shape), begun)
        made |= {f"stability/sketch/weight_after/{role}": left, f"stability/sketch/weight/{role}": odd}
        made |= {f"stability/sketch/mu/{role}": np.where(odd == begun, 1.0, odd)}
        made |= {f"stability/sketch/gradient/{role}": np.zeros(shape)}
        made |= {
            f"stability/{name}/{role}": np.where(odd == begun, 1.0, np.abs(odd))
            for name in ("mu_norm", "nu_mean")
            if dice.random() < 0.5
        }
        made[f"stability/vector_norm/{role}"] = np.abs(left)
    return {name: Series(steps, values) for name, values in made.items()}


def columns(role: str, layers: int) -> int:
    return 1 if role in ("embed_tokens", "lm_head", "norm/scale") else layers


def some(dice: np.random.Generator, steps: np.ndarray) -> np.ndarray:
    """All steps mostly, or a half: those of a run that was killed, or began to measure late."""
    half = -(-len(steps) // 2)  # few lengths, for the rules of the step are compiled for each
    return steps[half - 1 :][:half] if dice.random() < 0.15 else steps[:half] if dice.random() < 0.15 else steps


def _values(dice: np.random.Generator, steadiness: float, steps: np.ndarray, width: int, shape: str = "") -> Series:
    """Columns of the given shape, or each of a random one, steady by the given probability."""
    others = (1 - steadiness) / (len(SHAPES) - 1)
    shapes = [shape] * width if shape else dice.choice(SHAPES, width, p=[steadiness, *[others] * (len(SHAPES) - 1)])
    return Series(steps, np.stack([_column(dice, str(each), len(steps)) for each in shapes], axis=1))


def _column(dice: np.random.Generator, shape: str, n: int) -> np.ndarray:
    size = float(dice.choice([1e-3, 1.0, 30.0]))
    t, drift = np.arange(n) / max(1, n - 1), np.exp(np.cumsum(0.01 * dice.standard_normal(n)))
    if shape == "all odd":
        return dice.choice(ODD, n)
    if shape == "odd":
        return np.where(dice.random(n) < 0.1, dice.choice(ODD, n), size * drift)
    factor = {
        "steady": lambda: 1.0,
        "constant": lambda: 1 / drift,
        "zero": lambda: 0.0,
        "shrinks then grows": lambda: np.exp(4 * np.abs(2 * t - 1)),
        "grows": lambda: np.exp(float(dice.choice([1, 30])) * t),
        "shrinks": lambda: np.exp(-float(dice.choice([1, 30])) * t),
        "jumps": lambda: np.where(t > dice.random(), float(dice.choice([0.0, 0.1, 20.0])), 1.0),
        "noise": lambda: np.exp(2 * dice.standard_normal(n)),
    }
    return size * drift * factor[shape]()


def main(count: int) -> int:
    """Diagnoses `count` histories, one in 200 with its figures."""
    from jaxstab.diagnose.causes import CAUSES
    from jaxstab.diagnose.diagnosis import diagnosed
    from jaxstab.diagnose.figures import figures
    from jaxstab.diagnose.page import page
    from jaxstab.diagnose.report import as_json
    from jaxstab.diagnose.sections import as_text, sections

    warnings.simplefilter("error")
    started, faults, causes = time.monotonic(), collections.Counter(), collections.Counter()
    for seed in range(count):
        try:
            history = random_history(seed)
            diagnosis = diagnosed(history)
            as_json(diagnosis), as_text(sections(diagnosis))
            drawn = figures(history, [diagnosis.cause.step] if diagnosis.cause.step else []) if seed % 200 == 0 else []
            page("Odd", "", sections(diagnosis), drawn)
            causes.update({cause.cause for cause in diagnosis.causes})
        except Exception as error:
            place = [frame for frame in traceback.extract_tb(error.__traceback__) if "jaxstab" in frame.filename][-1]
            faults[f"{type(error).__name__}: {error} at {Path(place.filename).name}:{place.lineno}"] += 1
            print(f"seed {seed}: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})")
    print(f"{count} histories in {time.monotonic() - started:.0f} s, {sum(faults.values())} faults")
    for fault, times in faults.most_common():
        print(f"{times:6} {fault}")
    print({name: causes[name] for name in CAUSES})
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
