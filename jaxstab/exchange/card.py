"""The model card of an export: what was trained, on what, how far it came, and how it was kept stable."""

from __future__ import annotations

from pathlib import Path

from jaxstab.config import flatten, unchosen
from jaxstab.exchange.family import Family
from jaxstab.exchange.folder import read_json
from jaxstab.logging import read_metrics
from jaxstab.logging.jsonl import in_force
from jaxstab.train.config import Config

IMPORTED = "imported.json"  # in a workdir, of a model that was imported
CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [jaxstab]
---

# {name}

A {architecture} of {width} x {layers}, vocabulary {vocabulary:,}, pre-trained with jaxstab: step {step} of {steps}.
{origin}
## Data

{data}

## How it was kept stable

{stable}

## Losses

{losses}

## Config

The keys that differ from jaxstab's defaults:

```
{changes}
```

The weights are float32, with every gate and constant merged into its matrix: nothing but `transformers` is needed.
"""
STABILISERS = (
    "reparam.",
    "init.",
    "model.norm_placement.",
    "model.embedding.",
    "model.qk_norm",
    "optimizer.clip.",
    "optimizer.projection.",
    "stability.on_spike",
    "train.z_loss",
)


def card(workdir: Path, step: int, config: Config, family: Family, name: str) -> str:
    """The card of a checkpoint, as Markdown."""
    model, flat = config.model, flatten(config)
    chosen = {key: value for key, value in flat.items() if key not in unchosen(flat)}
    default = flatten(Config())
    return CARD.format(
        name=name,
        architecture=family.architecture,
        width=model.width,
        layers=model.layers,
        vocabulary=model.vocabulary,
        step=step,
        steps=config.total_steps,
        origin=_origin(workdir),
        data=_data(config),
        stable="\n".join(f"- `{key}={value}`" for key, value in chosen.items() if key.startswith(STABILISERS)),
        losses=_losses(workdir, step),
        changes="\n".join(f"{key}={value!r}" for key, value in chosen.items() if default.get(key) != value),
    )


def _origin(workdir: Path) -> str:
    path = workdir / IMPORTED
    if not path.is_file():
        return ""
    origin = read_json(path)
    return f"\nIts training went on from an imported {origin['architecture']}, {Path(origin['source']).name}.\n"


def _data(config: Config) -> str:
    data = config.data
    where = {"text": ", ".join(data.files)}.get(data.source, data.name or data.source)
    batch = config.train.batch_size * data.length
    return (
        f"Source `{data.source}` ({where}), tokenizer `{Path(data.tokenizer).name}`, {batch:,} tokens a step in "
        f"sequences of {data.length}, micro-batches a batch: {config.train.accumulation}, data seed {data.seed}."
    )


def _losses(workdir: Path, step: int) -> str:
    """The last values up to a step of the training loss and of every evaluation."""
    metrics = workdir / "metrics.jsonl"
    latest: dict[str, tuple[int, float]] = {}
    for line in in_force(read_metrics(metrics)) if metrics.is_file() else []:
        if line["step"] <= step:
            latest |= {name: (line["step"], value) for name, value in line.items() if _is_told(name)}
    rows = [f"| {name} | {value:.6g} | {at} |" for name, (at, value) in latest.items()]
    return "\n".join(["| metric | value | step |", "|---|---|---|", *rows]) if rows else "None was measured."


def _is_told(name: str) -> bool:
    return name in ("train/loss", "train/tokens") or name.startswith("eval/")
