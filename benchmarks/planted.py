"""Diagnose, tested blind: draws causes, plants each in a small run, and scores what `main.py diagnose` says of it.

    python benchmarks/planted.py run --seed=1 --workdir=runs/planted-1 --out=docs/results/diagnose/draw-1.jsonl
    python benchmarks/planted.py report docs/results/diagnose/draw-1.jsonl

A cause is drawn with its layer, size, step, depth and seed before anything runs, and planted from outside of the
library: a state that changes just before a step, batches that are replaced, a key of the config. What was planted
stands beside the directory of the run, and the tool gets that directory alone. `run` goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1]))

from jaxstab.train.config import default_config

CAUSES = ("none", "weights_scaled", "attention_logits", "embedding_scale", "learning_rate", "data")
ANSWERS = (*CAUSES, "nonfinite")
ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
DEPTHS = (4, 6, 8)
HEADS = 4
STEPS = 300
BATCH = 8
RATE = 3e-3
RUNS = 42
PERMUTATIONS = 10_000


def get_config(layers: str = "4") -> ConfigDict:
    """A healthy run on bytes of Wikipedia, which each cause is planted in."""
    config = default_config()
    config.model.width, config.model.layers, config.model.heads = 64, int(layers), HEADS
    config.model.vocabulary, config.model.max_length = 0, 64
    config.model.embedding.method, config.model.remat = "unit", "none"
    config.init.method = "small"
    config.optimizer.learning_rate, config.optimizer.warmup = RATE, 30
    config.train.steps, config.train.batch_size, config.train.loss_chunk = STEPS, BATCH, 64
    config.data.source, config.data.files = "text", ("corpus/train-00000-*.jsonl.xz",)
    config.data.length, config.data.max_tokens = 64, 5_000_000
    config.eval.every, config.eval.final_batches = 0, 8
    config.checkpoint.every = 100
    config.stability.measure, config.stability.measure_every = "full", 25
    config.log.tensorboard_every = 0
    return config


# What is planted.


def draw(seed: int, runs: int = RUNS) -> list[dict[str, Any]]:
    """The causes of a draw: equally many of each, in random order, everything else at random. Sizes are log-uniform."""
    random = np.random.default_rng(seed)
    causes = random.permutation([CAUSES[each % len(CAUSES)] for each in range(runs)])
    return [_drawn(random, str(cause)) | {"run": run} for run, cause in enumerate(causes)]


def _drawn(random: np.random.Generator, cause: str) -> dict[str, Any]:
    def between(low: float, high: float) -> float:
        return float(np.exp(random.uniform(np.log(low), np.log(high))))

    layers = int(random.choice(DEPTHS))
    planted: dict[str, Any] = {"cause": cause, "layers": layers, "seed": int(random.integers(1000))}
    layer, step = int(random.integers(layers)), int(random.integers(100, STEPS - 50))
    if cause == "weights_scaled":
        # Three in four grow, one in four shrinks; a factor of 1.5 is faint.
        factor = between(1.5, 50) ** (1 if random.random() < 0.75 else -1)
        planted |= {"role": str(random.choice(ROLES)), "layer": layer, "factor": factor, "step": step}
    elif cause == "attention_logits":
        # Queries and keys each, so that logits grow by the square: 2.25 to 225 times.
        planted |= {"layer": layer, "head": int(random.integers(HEADS)), "factor": between(1.5, 15), "step": step}
    elif cause == "embedding_scale":
        planted |= {"factor": 1 / between(3, 100), "step": 1}
    elif cause == "learning_rate":
        planted |= {"factor": between(3, 30), "step": 1}
    elif cause == "data":
        kind = str(random.choice(("random bytes", "one byte", "one record")))
        share = float(random.choice((0.25, 0.5, 1.0)))
        planted |= {"kind": kind, "batches": int(random.integers(1, 21)), "share": share, "step": step}
    return planted


def plant(planted: dict[str, Any], workdir: Path) -> None:
    """Plants a cause in this process, before it trains; what it did is written beside `workdir`."""
    from jaxstab import data
    from jaxstab.train import loop

    cause, build = planted["cause"], loop.build

    def planting(config: Any, *arguments: Any) -> Any:
        program = build(config, *arguments)
        if cause == "embedding_scale":

            def init(seed: Any) -> Any:
                state = program.init(seed)
                return state._replace(raw=scaled(state.raw, ("embed_tokens",), planted["factor"]))

            return dataclasses.replace(program, init=init)
        if cause in ("weights_scaled", "attention_logits"):
            return dataclasses.replace(program, step=stepping(program.step))
        return program

    def stepping(step: Callable[..., Any]) -> Callable[..., Any]:
        def planted_step(state: Any, *arguments: Any) -> Any:
            return step(change(state) if int(state.step) == planted["step"] - 1 else state, *arguments)

        return planted_step

    def change(state: Any) -> Any:
        if cause == "weights_scaled":
            return state._replace(raw=scaled(state.raw, (planted["role"], planted["layer"]), planted["factor"]))
        raw = state.raw
        for role in ("q_proj", "k_proj"):
            raw = scaled(raw, (role, planted["layer"], planted["head"]), planted["factor"])
        return state._replace(raw=raw)

    def scaled(raw: Any, where: tuple[Any, ...], factor: float) -> Any:
        before, raw, after = _scaled(raw, where, factor)
        line = json.dumps({"where": where, "factor": factor, "norm_before": before, "norm_after": after})
        with _evidence(workdir).open("a") as file:
            file.write(line + "\n")
        return raw

    loop.build = planting
    if cause == "data":
        data.Batches.records = poisoned(
            data.Batches.records, planted["step"], planted["batches"], planted["kind"], planted["share"]
        )


def _evidence(workdir: Path) -> Path:
    return workdir.with_name(workdir.name + ".planted")


def _scaled(raw: Any, where: tuple[Any, ...], factor: float) -> tuple[float, Any, float]:
    """A role's matrix, or one layer's, or one head's columns of that, times a factor; and its norm before and after."""
    import jax
    import jax.numpy as jnp

    role, *index = where
    norms = []

    def leaf(path: Any, array: Any) -> Any:
        if role not in jax.tree_util.keystr(path, simple=True, separator="/").split("/"):
            return array
        part: tuple[Any, ...] = tuple(index[:1])
        if len(index) == 2:  # [layer, in, heads * head size]
            size = array.shape[-1] // HEADS
            part = (index[0], slice(None), slice(index[1] * size, (index[1] + 1) * size))
        changed = array.at[part].multiply(factor)
        norms.extend(float(jnp.linalg.norm(each[part])) for each in (array, changed))
        return jax.device_put(changed, array.sharding)

    raw = jax.tree_util.tree_map_with_path(leaf, raw)
    before, after = norms
    return before, raw, after


def poisoned(
    records: Callable[..., np.ndarray], step: int, batches: int, kind: str, share: float = 1.0, size: int = BATCH
) -> Callable[..., np.ndarray]:
    """`Batches.records`, with garbage in a share of the rows of the batches from that of `step` on.

    What stands at a position is a function of the position, as it is for the text.
    """

    def with_garbage(self: Any, position: int, count: int, rows: slice = slice(None)) -> np.ndarray:
        replaced = records(self, position, count, rows).copy()
        for row, place in enumerate(range(position, position + count)[rows]):
            if (step - 1) * size <= place < (step - 1 + batches) * size and place % size < round(share * size):
                replaced[row] = garbage(kind, place, replaced.shape[1])
        return replaced

    return with_garbage


def garbage(kind: str, position: int, length: int) -> np.ndarray:
    """A record of garbage: the same random bytes each time, new random bytes each time, or one byte repeated."""
    random = np.random.default_rng(0 if kind == "one record" else position)
    if kind == "one byte":
        return np.full(length, random.integers(256), np.int32)
    return random.integers(0, 256, length, dtype=np.int32)


# Running it.


def run(arguments: argparse.Namespace) -> None:
    """Trains and diagnoses what isn't in the file of results yet, one line per run."""
    causes = draw(arguments.seed, arguments.runs)
    done = {line["planted"]["run"] for line in _lines(arguments.out)} if arguments.out.exists() else set()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    print(
        f"{len(causes) - len(done)} of {len(causes)} runs are left: about {(len(causes) - len(done)) * 1.5:.0f} minutes"
    )
    for planted in causes:
        if planted["run"] in done:
            continue
        started = time.monotonic()
        line = {"seed": arguments.seed, "planted": planted, **measured(planted, arguments)}
        with arguments.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"run {planted['run']} in {time.monotonic() - started:.0f} s", flush=True)


def measured(planted: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """One run and what the tool answers, with the loss around the step of the planting."""
    workdir = arguments.workdir / f"{planted['run']:02d}"
    workdir.parent.mkdir(parents=True, exist_ok=True)
    evidence = _evidence(workdir)
    shutil.rmtree(workdir, ignore_errors=True)
    evidence.unlink(missing_ok=True)
    rate = RATE * (planted["factor"] if planted["cause"] == "learning_rate" else 1)
    command = [sys.executable, __file__, "child", f"--plant={json.dumps(planted)}", f"--workdir={workdir}", "--"]
    command += [f"--config={__file__}:{planted['layers']}", f"--workdir={workdir}"]
    command += [f"--config.data.files={arguments.enwiki}/train-00000-*.jsonl.xz"]
    command += [f"--config.train.seed={planted['seed']}", f"--config.optimizer.learning_rate={rate!r}"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(arguments.workdir / "compiled")}
    with workdir.with_name(workdir.name + ".log").open("w") as log:
        trained = subprocess.run(command, env=os.environ | cache, stdout=log, stderr=log, check=False).returncode
        asked = [sys.executable, "main.py", "diagnose", f"--workdir={workdir}"]
        diagnosed = subprocess.run(asked, env=os.environ | cache, stdout=log, stderr=log, check=False).returncode
    report = workdir / "report" / "diagnose.json"
    answer = json.loads(report.read_text()) if diagnosed == 0 and report.exists() else {"cause": "no answer"}
    answer = {key: answer.get(key) for key in ("cause", "role", "layer", "head", "step")}
    proof = _lines(evidence) if evidence.exists() else []
    return {
        "answer": answer,
        "train_exit": trained,
        "diagnose_exit": diagnosed,
        "evidence": proof,
        **_effect(workdir, planted),
    }


def _effect(workdir: Path, planted: dict[str, Any]) -> dict[str, float | None]:
    """How much the loss rose: its mean over the five steps from the planting on, over the twenty before."""
    from jaxstab.logging import read_metrics

    loss = {
        line["step"]: line["train/loss"] for line in read_metrics(workdir / "metrics.jsonl") if "train/loss" in line
    }
    step = planted.get("step", 1)
    before = [loss[each] for each in range(step - 20, step) if each in loss]
    after = [loss[each] for each in range(step, step + 5) if each in loss]
    rise = round(float(np.mean(after) - np.mean(before)), 4) if before and after else None
    last = [loss[each] for each in sorted(loss)[-20:]]
    return {"loss_rise": rise, "loss_at_end": round(float(np.mean(last)), 4)}


def child(arguments: argparse.Namespace) -> int:
    """Trains with the cause planted, in this process."""
    import main

    plant(json.loads(arguments.plant), arguments.workdir)
    return main.main(["main.py", *arguments.rest])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Scoring it.


def report(arguments: argparse.Namespace) -> None:
    """Prints the scores of each file of results, and its confusions."""
    for path in arguments.files:
        print(f"### {path.stem}\n\n{scores(_lines(path))}\n")


def scores(lines: list[dict[str, Any]]) -> str:
    """A table of scores against chance, and the table of confusions, in Markdown."""

    def part(key: str, *causes: str) -> list[tuple[Any, Any]]:
        chosen = [line for line in lines if line["planted"]["cause"] in causes]
        return [(line["planted"][key], line["answer"][key]) for line in chosen]

    placed = ("weights_scaled", "attention_logits")
    rows = [
        ("cause", part("cause", *CAUSES)),
        ("role, of a matrix that was scaled", part("role", "weights_scaled")),
        ("layer, of a matrix or a head", part("layer", *placed)),
        ("head", part("head", "attention_logits")),
    ]
    table = ["| right | | chance | p |", "|---|---|---|---|"]
    table += [f"| {name} | {_right(pairs)} of {len(pairs)} | {_chance(pairs)} |" for name, pairs in rows]
    steps = [(line["planted"]["step"], line["answer"]["step"]) for line in lines if _has_moment(line)]
    near = sum(answer is not None and abs(answer - step) <= 5 for step, answer in steps)
    healthy = [line for line in lines if line["planted"]["cause"] == "none"]
    alarms = sum(line["answer"]["cause"] != "none" for line in healthy)
    table.append(f"| step, within 5 | {near} of {len(steps)} | | |")
    table.append(f"| false alarms, where nothing was planted | {alarms} of {len(healthy)} | | |")
    counts = collections.Counter((line["planted"]["cause"], line["answer"]["cause"]) for line in lines)
    answers = [name for name in (*ANSWERS, "no answer") if any(counts[cause, name] for cause in CAUSES)]
    confusions = [f"| planted \\ answer | {' | '.join(answers)} |", "|---" * (len(answers) + 1) + "|"]
    confusions += [
        f"| {cause} | {' | '.join(str(counts[cause, name] or '') for name in answers)} |" for cause in CAUSES
    ]
    return "\n".join([*table, "", *confusions])


def _has_moment(line: dict[str, Any]) -> bool:
    return line["planted"]["cause"] in ("weights_scaled", "attention_logits", "data")


def _right(pairs: Sequence[tuple[Any, Any]]) -> int:
    return sum(truth == answer for truth, answer in pairs)


def _chance(pairs: Sequence[tuple[Any, Any]]) -> str:
    """What the same answers score when they are shuffled, on average, and how often they score as much."""
    random = np.random.default_rng(0)
    truths, answers = zip(*pairs, strict=True)
    by_chance = [
        sum(truths[each] == answers[other] for each, other in enumerate(random.permutation(len(answers))))
        for _ in range(PERMUTATIONS)
    ]
    as_good = (1 + sum(each >= _right(pairs) for each in by_chance)) / (1 + PERMUTATIONS)
    return f"{np.mean(by_chance):.1f} | {as_good:.2g}"


def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.add_argument("--seed", type=int, required=True)
    running.add_argument("--runs", type=int, default=RUNS)
    running.add_argument("--enwiki", default="corpus")
    running.add_argument("--workdir", type=Path, required=True)
    running.add_argument("--out", type=Path, required=True)
    running.set_defaults(function=run)
    reporting = commands.add_parser("report")
    reporting.add_argument("files", type=Path, nargs="+")
    reporting.set_defaults(function=report)
    training = commands.add_parser("child", help="one run, as `run` starts it")
    training.add_argument("--plant", required=True)
    training.add_argument("--workdir", type=Path, required=True)
    training.add_argument("rest", nargs="*")
    training.set_defaults(function=child)
    arguments = parser.parse_args()
    return arguments.function(arguments)


if __name__ == "__main__":
    sys.exit(main())
