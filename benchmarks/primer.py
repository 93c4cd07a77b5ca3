"""One gradient spike through every update rule, clip and guard: docs/results/primer.md.

    python benchmarks/primer.py --out=docs/results/primer

A small model trains for BEFORE steps on drawn tokens with a structure to learn. Then, for one step, the gradient of one
matrix is FACTOR times itself, and AFTER steps follow; a twin without the spike takes the same steps on the same tokens.
What is told is the difference that the spike makes: to the updates, to the weights, and to the loss.

Stopped and started again, it goes on with the settings that primer.jsonl lacks; it draws the picture at the end.
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
import optax

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.planting.gradients import changed_gradients
from jaxstab.config import from_flat
from jaxstab.optimize import CLIPS, OPTIMIZERS, Hypers
from jaxstab.train.config import Config
from jaxstab.train.packed import unpack
from jaxstab.train.program import Program, build

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BEFORE, AFTER, FACTOR, SEEDS = 150, 50, 100.0, 3
ROLE, LAYER = "up_proj", 1
RATE, BATCH, LENGTH, VOCABULARY = 3e-3, 16, 32, 64
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
MODEL: dict[str, Any] = {
    "model.width": 48,
    "model.layers": 3,
    "model.heads": 3,
    "model.vocabulary": VOCABULARY,
    "model.max_length": LENGTH,
    "model.embedding.method": "unit",
    "model.remat": "none",
    "init.method": "small",
    "data.length": LENGTH,
    "train.steps": BEFORE + AFTER + 1,
    "train.batch_size": BATCH,
    "train.loss_chunk": LENGTH,
    "optimizer.learning_rate": RATE,
    "optimizer.warmup": 20,
    "optimizer.schedule.method": "constant",
    "optimizer.clip.method": "none",
    "stability.measure": "off",
}
GUARDS: dict[str, dict[str, Any]] = {
    "guard: skip": {"stability.on_spike": "skip"},
    "guard: skip, OLMo 2's rule": {"stability.on_spike": "skip", "stability.rule": "olmo2"},
    "guard: skip, momentum restarts": {"stability.on_spike": "skip", "optimizer.restart_above": 4.0},
}


def settings() -> dict[str, dict[str, Any]]:
    """What the spike goes through, by name: each rule without clipping, each clip and guard with AdamW."""
    rules = {name: {"optimizer.rule.method": name} for name in OPTIMIZERS}
    clips = {f"clip: {name}": {"optimizer.clip.method": name} for name in CLIPS if name != "none"}
    clips["clip of the update: recent_norms"] = {"optimizer.update_clip.method": "recent_norms"}
    return rules | clips | GUARDS


def tokens(seed: int, step: int) -> jax.Array:
    """Random walks over the vocabulary, which a small model learns in part."""
    random = np.random.default_rng((seed, step))
    steps = random.choice((1, 2, 3, 5), (BATCH, LENGTH + 1), p=(0.5, 0.3, 0.15, 0.05))
    return jnp.asarray(np.cumsum(steps, axis=1) % VOCABULARY, jnp.int32)


def run(plain: Program, spiking: Program, seed: int) -> dict[str, Any]:
    """One seed: what the step of the spike moved, and losses, update norms and weights of the steps that follow."""
    hypers = Hypers(jnp.float32(RATE), jnp.float32(0.01))
    state = plain.init(seed)
    for step in range(BEFORE):
        state, _ = plain.step(state, tokens(seed, step), hypers)
    start = jax.tree.map(np.asarray, state)
    with changed_gradients(_spiking):
        hit, metrics = spiking.step(jax.tree.map(jnp.asarray, start), tokens(seed, BEFORE), hypers)
    twin, twin_metrics = plain.step(jax.tree.map(jnp.asarray, start), tokens(seed, BEFORE), hypers)
    result: dict[str, Any] = {
        "skipped": bool(unpack(metrics)[0]["train/skipped"]),
        "update_ratio": _update_ratio(start.raw, hit.raw),
        "twin_update_ratio": _update_ratio(start.raw, twin.raw),
        "loss": [],
        "twin_loss": [],
        "update_norm": [unpack(metrics)[0]["train/update_norm"] * (1 - unpack(metrics)[0]["train/skipped"])],
        "twin_update_norm": [unpack(twin_metrics)[0]["train/update_norm"]],
        "weights_apart": [_apart(hit.raw, twin.raw)],
    }
    for step in range(BEFORE + 1, BEFORE + 1 + AFTER):
        hit, metrics = plain.step(hit, tokens(seed, step), hypers)
        twin, twin_metrics = plain.step(twin, tokens(seed, step), hypers)
        for name in ("loss", "update_norm"):
            result[name].append(unpack(metrics)[0][f"train/{name}"])
            result[f"twin_{name}"].append(unpack(twin_metrics)[0][f"train/{name}"])
        result["weights_apart"].append(_apart(hit.raw, twin.raw))
    return jax.tree.map(lambda value: value if isinstance(value, bool) else float(f"{value:.6g}"), result)


def _update_ratio(before: Any, after: Any) -> float:
    """How far the matrix that spikes moved in a step, over its norm."""
    old, new = (np.float64(raw["layers"]["mlp"][ROLE]["kernel"][LAYER]) for raw in (before, after))
    return float(np.linalg.norm(new - old) / np.linalg.norm(old))


@jax.jit
def _apart(raw: Any, other: Any) -> Any:
    """The distance of all weights from the twin's, over the norm of these."""
    return optax.tree.norm(optax.tree.sub(raw, other)) / optax.tree.norm(other)


def _spiking(path: str, gradient: jax.Array) -> jax.Array:
    """The gradient of one layer's matrix is FACTOR times itself."""
    return gradient.at[LAYER].multiply(FACTOR) if f"/{ROLE}/kernel" in path else gradient


def curves(runs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Means over seeds, a value a step: the loss above the twin's, the update's norm over the twin's, the distance."""
    values = {name: np.array([run[name] for run in runs]) for name, each in runs[0].items() if isinstance(each, list)}
    return {
        "excess": (values["loss"] - values["twin_loss"]).mean(0),
        "update": (values["update_norm"] / values["twin_update_norm"]).mean(0),
        "apart": values["weights_apart"].mean(0),
    }


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The rows of the page, in Markdown: means over seeds."""
    lines = []
    for name, runs in results.items():
        curve = curves(runs)
        ratio, twin = (np.mean([run[key] for run in runs]) for key in ("update_ratio", "twin_update_ratio"))
        excess = curve["excess"]
        cells = f"{ratio:.4f}", f"{ratio / twin:.2f}", f"{curve['apart'][0]:.4f}", f"{curve['apart'][-1]:.4f}"
        losses = f"{excess[0]:+.3f}", f"{excess.max():+.3f}", f"{excess.mean():+.4f}", f"{excess[-10:].mean():+.4f}"
        lines.append(f"| {name} | {' | '.join((*cells, *losses))} | {sum(run['skipped'] for run in runs)} |")
    return "\n".join(lines)


PANELS = {
    "update": ("norm of the update, over the twin's", 0),
    "apart": ("distance of the weights from the twin's, relative", 0),
    "excess": ("loss above the twin's, nats", 1),
}


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Updates, weights and losses from the step of the spike on, of rules and of what holds AdamW."""
    groups = [[name for name in results if ":" not in name], ["adamw", *(name for name in results if ":" in name)]]
    titles = ("update rules, nothing clipped", "AdamW with a clip or a guard")
    figure, axes = plt.subplots(3, 2, figsize=(13, 12), sharex=True, sharey="row")
    for column, (names, title) in enumerate(zip(groups, titles, strict=True)):
        for index, name in enumerate(names):
            style = {"color": COLOURS[index % len(COLOURS)], "linestyle": ("-", "--")[index // len(COLOURS)]}
            curve = curves(results[name])
            for row, (panel, (_, first)) in enumerate(PANELS.items()):
                axes[row, column].plot(range(first, AFTER + 1), curve[panel], label=name, linewidth=1.4, **style)
        axes[0, column].set_title(title)
        axes[2, column].set_xlabel("steps after the spike")
        axes[0, column].legend(fontsize=8, ncols=2)
    for row, (label, _) in enumerate(PANELS.values()):
        axes[row, 0].set_ylabel(label)
    for axis in axes[2]:
        axis.axhline(0, color="0.7", linewidth=0.8)
    figure.suptitle(f"The gradient of {ROLE} of layer {LAYER} × {FACTOR:g} in one step; mean of {SEEDS} seeds")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of raw data and picture")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    raw, every = out / "primer.jsonl", settings()
    lines = map(json.loads, raw.read_text().splitlines()) if raw.exists() else ()
    results = {line["setting"]: line["seeds"] for line in lines}
    missing = [name for name in every if name not in results]
    print(f"{len(missing)} of {len(every)} settings, of a minute each on one core", flush=True)
    for name in missing:
        started = time.monotonic()
        config = from_flat(Config, MODEL | every[name])
        plain, spiking = build(config), build(config)
        results[name] = [run(plain, spiking, seed) for seed in range(1, SEEDS + 1)]
        with raw.open("a") as file:
            file.write(json.dumps({"setting": name, "seeds": results[name]}) + "\n")
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    results = {name: results[name] for name in every}
    print(table(results))
    draw(results, out / "primer.png")


if __name__ == "__main__":
    main()
