"""One gradient spike through every update rule, clip and guard: docs/results/primer.md.

    python benchmarks/primer.py --out=docs/results/primer

A small model trains to step BEFORE on drawn tokens with a structure to learn. Then, for one step, the gradient of one
matrix is FACTOR times itself, and AFTER steps follow; a twin without the spike takes the same steps on the same tokens.
What is told is the difference that the spike makes: to the update of that step, to the weights, and to the loss.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.planting.gradients import changed_gradients
from jaxstab.config import from_flat
from jaxstab.numerics import l2_norm
from jaxstab.optimize import CLIPS, DECAYS, OPTIMIZERS, Hypers
from jaxstab.train.config import Config
from jaxstab.train.packed import unpack
from jaxstab.train.program import Program, build

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BEFORE, AFTER, FACTOR = 150, 50, 100.0
ROLE, LAYER = "up_proj", 1
RATE, BATCH, LENGTH, VOCABULARY = 3e-3, 16, 32, 64
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999", "#F0E442")
MODEL = {
    **{
        "model.width": 48,
        "model.layers": 3,
        "model.heads": 3,
        "model.vocabulary": VOCABULARY,
        "model.max_length": LENGTH,
    },
    **{"model.embedding.method": "unit", "init.method": "small", "model.remat": "none", "data.length": LENGTH},
    **{"train.steps": BEFORE + AFTER, "train.batch_size": BATCH, "train.loss_chunk": LENGTH, "optimizer.warmup": 20},
    **{"optimizer.schedule.method": "constant", "optimizer.clip.method": "none", "stability.measure": "off"},
}
GUARDS: dict[str, dict[str, Any]] = {
    "guard: skip": {"stability.on_spike": "skip"},
    "guard: skip, OLMo 2's rule": {"stability.on_spike": "skip", "stability.rule": "olmo2"},
}


def settings() -> dict[str, dict[str, Any]]:
    """What the spike goes through, by name: each rule without clipping, each clip, decay rule and guard with AdamW."""
    rules = {name: {"optimizer.rule.method": name} for name in OPTIMIZERS}
    clips = {f"clip: {name}": {"optimizer.clip.method": name} for name in CLIPS if name != "none"}
    clips |= {"clip of the update: recent_norms": {"optimizer.update_clip.method": "recent_norms"}}
    decays = {f"decay: {name}": {"optimizer.decay.method": name} for name in DECAYS if name != "decoupled"}
    return rules | clips | decays | GUARDS


def tokens(step: int) -> jax.Array:
    """Random walks over the vocabulary, which a small model learns in part."""
    random = np.random.default_rng(step)
    steps = random.choice((1, 2, 3, 5), (BATCH, LENGTH + 1), p=(0.5, 0.3, 0.15, 0.05))
    return jnp.asarray(np.cumsum(steps, axis=1) % VOCABULARY, jnp.int32)


def run(program: Program, spike: Program) -> dict[str, Any]:
    """Losses with and without the spike, and what it did to the update and to the weights."""
    state, hypers = program.init(0), Hypers(jnp.float32(RATE), jnp.float32(0.01))
    for step in range(BEFORE):
        state, _ = program.step(state, tokens(step), hypers)
    start = jax.tree.map(np.asarray, state)
    with changed_gradients(_spiking):
        hit, metrics = spike.step(jax.tree.map(jnp.asarray, start), tokens(BEFORE), hypers)
    plain, _ = program.step(jax.tree.map(jnp.asarray, start), tokens(BEFORE), hypers)
    moved = {name: _moved(start.raw, each.raw) for name, each in (("spike", hit), ("twin", plain))}
    losses: dict[str, list[float]] = {"spike": [], "twin": []}
    for step in range(BEFORE + 1, BEFORE + 1 + AFTER):
        hit, one = program.step(hit, tokens(step), hypers)
        plain, other = program.step(plain, tokens(step), hypers)
        for name, measured in (("spike", one), ("twin", other)):
            losses[name].append(float(unpack(measured)[0]["train/loss"]))
    skipped = bool(unpack(metrics)[0]["train/skipped"])
    return {"losses": losses, "moved": moved, "skipped": skipped, "apart": _apart(hit.raw, plain.raw)}


def _matrix(raw: Any) -> np.ndarray:
    return np.asarray(raw["layers"]["mlp"][ROLE]["kernel"][LAYER], np.float64)


def _moved(before: Any, after: Any) -> dict[str, float]:
    """How far the spiking matrix and everything moved in the step of the spike, over their norms."""
    matrix = float(np.linalg.norm(_matrix(after) - _matrix(before)) / np.linalg.norm(_matrix(before)))
    return {"matrix": matrix, "all": _apart(after, before)}


def _apart(one: Any, other: Any) -> float:
    difference = jax.tree.map(lambda a, b: jnp.asarray(a) - jnp.asarray(b), one, other)
    flat = [jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (difference, other)]
    return float(l2_norm(flat[0]) / l2_norm(flat[1]))


def _spiking(path: str, gradient: jax.Array) -> jax.Array:
    """The gradient of one layer's matrix is FACTOR times itself."""
    return gradient.at[LAYER].multiply(FACTOR) if f"/{ROLE}/kernel" in path else gradient


def summary(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: excess is the loss above the twin's."""
    excess = np.subtract(result["losses"]["spike"], result["losses"]["twin"])
    return {
        "setting": name,
        "skipped": result["skipped"],
        "update_ratio": result["moved"]["spike"]["matrix"],
        "twin_update_ratio": result["moved"]["twin"]["matrix"],
        "excess_next": float(excess[0]),
        "excess_max": float(excess.max()),
        "excess_mean": float(excess.mean()),
        "excess_last_10": float(excess[-10:].mean()),
        "weights_apart": result["apart"],
    }


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """The excess loss over the steps after the spike, of rules and of what holds AdamW."""
    groups = [[name for name in results if ":" not in name], [name for name in results if ":" in name]]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    titles = ("update rules, nothing clipped", "AdamW with a clip, a decay rule or a guard")
    for axis, names, title in zip(axes, groups, titles, strict=True):
        for index, name in enumerate(names):
            excess = np.subtract(results[name]["losses"]["spike"], results[name]["losses"]["twin"])
            style = "-" if index < len(COLOURS) else "--"
            axis.plot(
                range(1, AFTER + 1), excess, style, color=COLOURS[index % len(COLOURS)], label=name, linewidth=1.3
            )
        axis.set(title=title, xlabel="steps after the spike")
        axis.set_yscale("symlog", linthresh=1e-3)
        axis.axhline(0, color="0.7", linewidth=0.8)
        axis.legend(fontsize=7)
    axes[0].set_ylabel(f"loss above the twin's, nats ({ROLE} of layer {LAYER} × {FACTOR:g})")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of raw data and picture")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    every = settings()
    print(f"{len(every)} settings, of about 25 seconds each on one core", flush=True)
    results = {}
    for name, keys in every.items():
        started = time.monotonic()
        config = from_flat(Config, MODEL | {"optimizer.learning_rate": RATE} | keys)
        results[name] = run(build(config), build(config))
        row = summary(name, results[name])
        print(f"{json.dumps(row)} in {time.monotonic() - started:.0f} s", flush=True)
    (out / "primer.json").write_text(
        json.dumps({name: each | {"row": summary(name, each)} for name, each in results.items()})
    )
    draw(results, out / "primer.png")


if __name__ == "__main__":
    main()
