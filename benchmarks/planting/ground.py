"""Where faults are planted: a run's text, tokenizer, shape, methods, optimizer and schedule, drawn at random."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxstab.config import UserError, from_flat
from jaxstab.train.config import Config, check
from jaxstab.train.setup import set_up

TOKENS = 512  # of a batch
SHAPES = ((48, 2), (48, 3), (48, 4), (64, 2), (64, 4), (72, 3), (72, 6), (80, 4), (80, 5), (96, 3), (96, 4), (96, 6))
# What is drawn where, and how often. One value stands for itself.
CHOICES: dict[str, dict[Any, float]] = {
    "text": {"enwiki": 0.35, "enwiki-other": 0.2, "wikitext": 0.25, "stdlib": 0.2},
    "tokenizer": {"bytes": 0.4, "1024": 0.3, "2048": 0.3},
    "model.mlp": {"gelu": 0.4, "swiglu": 0.4, "relu": 0.2},
    "model.norm": {"rmsnorm": 0.75, "layernorm": 0.25},
    "model.norm_placement.method": {"pre": 0.4, "peri": 0.2, "reordered": 0.2, "post": 0.2},
    "model.embedding.method": {"unit": 0.4, "plain": 0.3, "scaled": 0.2, "layer_norm": 0.1},
    "model.qk_norm": {True: 0.2, False: 0.8},
    "model.bias": {True: 0.2, False: 0.8},
    "model.tie_embeddings": {True: 0.25, False: 0.75},
    "init.method": {"he": 0.2, "small": 0.4, "megatron": 0.15, "normal": 0.25},
    "reparam.method": {
        **{"identity": 0.36, "wesar": 0.2, "sigma_reparam": 0.14, "weight_norm": 0.14},
        **{"residual_scaling": 0.08, "mlra": 0.08},
    },
    "optimizer.rule.method": {"adamw": 0.65, "muon": 0.2, "stable_adamw": 0.15},
    "optimizer.schedule.method": {"cosine": 0.5, "constant": 0.2, "linear": 0.15, "warmup_stable_decay": 0.15},
    "optimizer.clip.method": {"global_norm": 0.75, "adagc": 0.1, "zclip": 0.1, "none": 0.05},
    "optimizer.weight_decay": {0.0: 0.1, 0.01: 0.5, 0.1: 0.4},
    "train.z_loss": {0.0: 0.3, 1e-4: 0.7},
    "stability.measure": {"light": 0.7, "full": 0.3},
}


def draw_ground(random: np.random.Generator) -> dict[str, Any]:
    """A run's keys, beside which `text` and `tokenizer` say what is read; one that the program accepts."""
    while True:
        ground = _drawn(random)
        try:
            keys = {key: value for key, value in ground.items() if "." in key}
            config = from_flat(Config, keys | {"model.vocabulary": 300, "model.max_length": 128})
            check(config)
            set_up(config)
        except UserError:
            continue
        return ground


def _drawn(random: np.random.Generator) -> dict[str, Any]:
    ground = {key: choose(random, choices) for key, choices in CHOICES.items()}
    width, heads = SHAPES[random.integers(len(SHAPES))]
    length = int(random.choice((32, 64, 128)))
    ground |= {
        "model.width": width,
        "model.heads": heads,
        "model.kv_heads": int(random.choice([n for n in range(1, heads + 1) if heads % n == 0])),
        "model.layers": int(random.integers(3, 10)),
        "data.length": length,
        "train.batch_size": TOKENS // length,
        "train.steps": int(random.integers(220, 271)),
        "train.seed": int(random.integers(1000)),
        "data.seed": int(random.integers(1000)),
        "optimizer.learning_rate": round(between(random, 3e-4, 3e-3), 6),
        "optimizer.warmup": int(random.integers(15, 60)),
    }
    rule = ground["optimizer.rule.method"]
    ground[f"optimizer.rule.{rule}.b2"] = choose(random, {0.95: 0.5, 0.98: 0.2, 0.999: 0.3})
    return ground


def choose(random: np.random.Generator, choices: dict[Any, float]) -> Any:
    """One of the keys, with the probabilities that are their values."""
    return list(choices)[random.choice(len(choices), p=np.array(list(choices.values())))]


def between(random: np.random.Generator, low: float, high: float) -> float:
    """A log-uniform number."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))
