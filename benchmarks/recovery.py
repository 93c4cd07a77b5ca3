"""The runs behind docs/results/recovery.md: a run that spikes by itself, a poisoned range of data, and what helps.

    python benchmarks/recovery.py plan
    python benchmarks/recovery.py run --enwiki=corpus --workdir=runs/recovery
    python benchmarks/recovery.py report --workdir=runs/recovery --out=docs/results/recovery

`plan` says what `run` will do. `run` starts main.py once per cell, in turn; stopped and started again, it goes on where
it was. First Small and WeSaR are tuned on seed 0, then everything runs on three seeds. `report` writes the tables into
docs/results/recovery.md, between their marks, and the curves and the raw metrics beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.comparisons import save
from benchmarks.planting.faults import replacing
from jaxstab.logging import in_force, read_metrics
from jaxstab.stability.spikes import RULES, deviations_over, exceeds

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CONFIG = "configs/spiking.py"
SEEDS = (0, 1, 2)
MINUTES = 3  # per cell, on one core

# Small is the config's own method. WeSaR starts from the same effective weights; its stored std is tuned with its rate.
RATES = {"small": ("2.5e-3", "5e-3", "1e-2", "2e-2"), "wesar": ("2.5e-3", "5e-3", "1e-2", "2e-2")}
SIGMAS = ("0.1",)

ROLLBACK = {
    "checkpoint.every": 25,
    "checkpoint.keep_last": 4,
    "stability.on_spike": "rollback",
    "stability.rollback_steps": 50,
    "stability.skip_batches": 50,
    "stability.max_rollbacks": 10,
}
RESPONSES: dict[str, dict[str, Any]] = {
    "log": {},
    "skip": {"stability.on_spike": "skip"},
    "rollback": ROLLBACK,
    "rollback, past batches before it too": ROLLBACK | {"stability.skip_before": 25},
    "rollback, half the rate": ROLLBACK | {"stability.rollback_learning_rate": 0.5, "stability.rollback_while": 200},
    "qk_norm, as diagnose advises": {"model.qk_norm": True},
}
POISON = {"step": 300, "batches": 20}  # of one record of random bytes
COSINE = {"optimizer.schedule.method": "cosine"}
POISONED: dict[str, dict[str, Any]] = {
    "taken out": {},
    "log": {},
    "skip": {"stability.on_spike": "skip"},
    "rollback": ROLLBACK | {"stability.skip_batches": 30},
    "taken out, cosine": COSINE,
    "rollback, cosine": COSINE | ROLLBACK | {"stability.skip_batches": 30},
}
RAW_METRICS = ("step", "attempt", "train/loss", "train/grad_norm", "train/update_norm", "train/spike", "train/skipped")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run: its place in the tables, and the keys of the config that it changes."""

    group: str
    name: str
    seed: int
    overrides: tuple[tuple[str, Any], ...]

    @property
    def slug(self) -> str:
        return f"{self.group}-{re.sub('[^a-z0-9.]+', '-', self.name)}-{self.seed}"

    @property
    def poison(self) -> bool:
        return self.group == "poison"


def cell(group: str, name: str, seed: int, overrides: dict[str, Any]) -> Cell:
    return Cell(group, name, seed, tuple(overrides.items()))


def tuning() -> list[Cell]:
    """Each method at each of its rates (and sigmas), on one seed."""
    cells = [cell("tune", f"small {rate}", 0, {"optimizer.learning_rate": rate}) for rate in RATES["small"]]
    for sigma in SIGMAS:
        wesar = {"reparam.method": "wesar", "reparam.wesar.sigma": sigma}
        cells += [
            cell("tune", f"wesar {sigma} {rate}", 0, wesar | {"optimizer.learning_rate": rate})
            for rate in RATES["wesar"]
        ]
    return cells


def comparison(tuned: dict[str, Cell]) -> list[Cell]:
    """The spiking run under each response, the tuned methods, and the poisoned data, on every seed."""
    cells = []
    for seed in SEEDS:
        cells += [cell("spiking", name, seed, overrides) for name, overrides in RESPONSES.items()]
        cells += [dataclasses.replace(best, group="tuned", name=method, seed=seed) for method, best in tuned.items()]
        small = dict(tuned["small"].overrides)
        cells += [cell("poison", name, seed, small | overrides) for name, overrides in POISONED.items()]
    return cells


def best(workdir: Path) -> dict[str, Cell]:
    """For each method the cell of the tuning that ends lowest on held-out text; empty where one is missing."""
    if not all(is_complete(workdir, each) for each in tuning()):
        return {}
    tuned: dict[str, Cell] = {}
    for each in tuning():
        method = each.name.split()[0]
        if method not in tuned or final_loss(workdir, each) < final_loss(workdir, tuned[method]):
            tuned[method] = each
    return tuned


# Running it.


def plan(arguments: argparse.Namespace) -> None:
    """Prints what is left to run, and about how long it takes."""
    tuned = best(arguments.workdir)
    placeholder = {"small": tuning()[0], "wesar": tuning()[-1]}
    cells = [*tuning(), *comparison(tuned or placeholder)]
    left = [each for each in cells if not is_complete(arguments.workdir, each)]
    print(f"{len(left)} of {len(cells)} runs are left, about {len(left) * MINUTES} minutes on one core")
    for each in left:
        unknown = "the tuned keys, " if not tuned and each.group not in ("tune", "spiking") else ""
        print(f"  {each.slug}: {unknown}{dict(each.overrides)}")


def run(arguments: argparse.Namespace) -> None:
    """Runs every cell that isn't complete: the tuning first, since the rest follows from it."""
    plan(arguments)
    for each in tuning():
        start(each, arguments)
    for each in comparison(best(arguments.workdir)):
        start(each, arguments)


def start(each: Cell, arguments: argparse.Namespace) -> None:
    """One cell in a process of its own; a run that stops itself is a result too, and its exit code is kept."""
    if is_complete(arguments.workdir, each):
        return
    workdir = arguments.workdir / each.slug
    workdir.mkdir(parents=True, exist_ok=True)
    if each.poison and each.name.startswith("taken out"):
        take_out(workdir, POISON["step"], POISON["batches"])
    command = [sys.executable, __file__, "child", *(["--poison"] if each.poison else []), "--"]
    command += [f"--config={CONFIG}", f"--workdir={workdir}", f"--config.train.seed={each.seed}"]
    command += [f"--config.data.files={arguments.enwiki}/train-00000-*.jsonl.xz"]
    command += [f"--config.{key}={value}" for key, value in each.overrides]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(arguments.workdir / "compiled")}
    begun = time.monotonic()
    with (workdir / "output.txt").open("a") as output:
        code = subprocess.run(command, env=os.environ | cache, stdout=output, stderr=output, check=False).returncode
    if code < 0 or code > 128:
        raise SystemExit(f"{each.slug} was killed; start again to go on")
    (workdir / "exit").write_text(str(code))
    print(f"{each.slug}: exit {code}, {time.monotonic() - begun:.0f} s", flush=True)


def child(arguments: argparse.Namespace) -> int:
    """Trains in this process, on poisoned data where asked to."""
    import main
    from jaxstab import data
    from jaxstab.train.config import resolve

    sys.path.insert(0, str(Path(CONFIG).parent))
    if arguments.poison:
        import spiking

        size = resolve(spiking.get_config()).train.batch_size
        first, end = (POISON["step"] - 1) * size, (POISON["step"] - 1 + POISON["batches"]) * size
        data.Batches.records = replacing(data.Batches.records, one_record, first, end, size, 1.0)
    return main.main(["main.py", *arguments.rest])


def one_record(position: int, length: int) -> np.ndarray:
    """The same record of garbage at each position."""
    return np.random.default_rng(0).integers(0, 256, length, dtype=np.int32)


def take_out(workdir: Path, step: int, batches: int) -> None:
    """Has the run that will be in `workdir` step over the batches from that of `step` on."""
    from jaxstab.train import journal

    line = json.dumps({"kind": "skip", "skip": [step - 1, step - 1 + batches]})
    (workdir / journal.FILE).write_text(line + "\n")


def is_complete(workdir: Path, each: Cell) -> bool:
    return (workdir / each.slug / "exit").exists()


# Its results.


def metrics(workdir: Path, each: Cell) -> list[dict[str, Any]]:
    return read_metrics(workdir / each.slug / "metrics.jsonl")


def steps_of(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "train/loss" in line]


def final_loss(workdir: Path, each: Cell) -> float:
    """The validation loss at the end; infinite for a run that stopped before it."""
    losses = [line["eval/validation/loss"] for line in metrics(workdir, each) if "eval/validation/loss" in line]
    stopped = (workdir / each.slug / "exit").read_text() != "0"
    return math.inf if stopped or not math.isfinite(losses[-1]) else losses[-1]


def spikes(lines: list[dict[str, Any]]) -> dict[str, int]:
    """Steps that each rule calls a spike, over every step that was computed, also those that were rolled back."""
    counts = {}
    for quantity in ("loss", "grad_norm"):
        values = [line[f"train/{quantity}"] for line in lines]
        for name, z in deviations_over(values).items():
            counts[f"{name}, {quantity}"] = int(np.sum(exceeds(z, RULES[name])))
    return counts


def summary(workdir: Path, each: Cell) -> dict[str, Any]:
    """A row of the tables."""
    lines = metrics(workdir, each)
    computed, steps = steps_of(lines), steps_of(in_force(lines))
    loss = np.array([line["train/loss"] for line in steps])
    return {
        "final": final_loss(workdir, each),
        "last": steps[-1]["step"],
        "train": float(loss[-50:].mean()),
        "worst": float(np.max(loss[100:] - [np.median(loss[at - 50 : at]) for at in range(100, len(loss))])),
        **spikes(computed),
        "skipped": int(sum(line["train/skipped"] for line in steps)),
        "rolled back": len(computed) - len(steps),
        "roll-backs": max(line["attempt"] for line in lines),
    }


def report(arguments: argparse.Namespace) -> None:
    """Writes the tables, the raw metrics and the curves."""
    workdir, out = arguments.workdir, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    cells = [each for each in [*tuning(), *comparison(best(workdir))] if is_complete(workdir, each)]
    rows = {each: summary(workdir, each) for each in cells}
    for each in cells:
        raw = "".join(
            json.dumps({key: line[key] for key in line if key in RAW_METRICS or "eval" in key}) + "\n"
            for line in metrics(workdir, each)
        )
        (out / f"{each.slug}.jsonl.gz").write_bytes(gzip.compress(raw.encode(), mtime=0))
    page = out.with_suffix(".md")
    text = page.read_text()
    for group in ("tune", "spiking", "poison"):
        text = put(text, group, table(rows, (group, "tuned") if group == "spiking" else (group,)))
    page.write_text(text)
    draw(workdir, [each for each in cells if each.group in ("spiking", "tuned")], out / "spiking.svg")
    draw(workdir, [each for each in cells if each.poison], out / "poison.svg")


def put(text: str, name: str, inner: str) -> str:
    """`text` with what stands between the marks of a table replaced."""
    mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    return mark.sub(lambda match: f"{match[1]}\n{inner}\n\n{match[2]}", text)


def table(rows: dict[Cell, dict[str, Any]], groups: tuple[str, ...]) -> str:
    """One row per cell, in Markdown."""
    chosen = {each: row for each, row in rows.items() if each.group in groups}
    lines = [
        "| run | seed | validation loss | training loss, last 50 | highest over its median | spikes: loss | "
        "gradient | 7 SD of 1,000: loss | gradient | skipped | rolled back |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each, row in sorted(chosen.items(), key=lambda item: (item[0].group, item[0].name, item[0].seed)):
        end = f"{row['final']:.4f}" if math.isfinite(row["final"]) else f"stopped at {row['last']}"
        counts = [row[f"{rule}, {quantity}"] for rule in ("skip_step", "olmo2") for quantity in ("loss", "grad_norm")]
        back = f"{row['rolled back']} in {row['roll-backs']}" if row["roll-backs"] else "0"
        values = [
            each.name,
            each.seed,
            end,
            f"{row['train']:.3f}",
            f"{row['worst']:.2f}",
            *counts,
            row["skipped"],
            back,
        ]
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines)


def draw(workdir: Path, cells: list[Cell], out: Path) -> None:
    """Training loss of the steps in force, one panel per seed, with the steps that were rolled back in grey."""
    figure, panels = plt.subplots(len(SEEDS), 1, figsize=(9, 2.6 * len(SEEDS)), sharex=True, squeeze=False)
    for each in cells:
        axes = panels[SEEDS.index(each.seed), 0]
        lines = metrics(workdir, each)
        for attempt in _attempts(steps_of(lines)):
            axes.plot(*_curve(attempt), color="lightgray", linewidth=0.6)
        axes.plot(*_curve(steps_of(in_force(lines))), linewidth=0.7, label=f"{each.group}: {each.name}")
    for seed, axes in zip(SEEDS, panels[:, 0], strict=True):
        axes.set(ylabel=f"loss, seed {seed}")
    panels[0, 0].legend(fontsize=7, ncols=3)
    panels[-1, 0].set(xlabel="step")
    figure.tight_layout()
    save(figure, out)


def _attempts(lines: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for attempt in range(max((line["attempt"] for line in lines), default=0)):
        yield [line for line in lines if line["attempt"] == attempt]


def _curve(lines: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [line["train/loss"] for line in lines]


def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("plan", plan), ("run", run), ("report", report)):
        command = commands.add_parser(name)
        command.add_argument("--enwiki", default="corpus")
        command.add_argument("--workdir", type=Path, default=Path("runs/recovery"))
        command.add_argument("--out", type=Path, default=Path("docs/results/recovery"))
        command.set_defaults(function=function)
    command = commands.add_parser("child", help="one run, as `run` starts it")
    command.add_argument("--poison", action="store_true")
    command.add_argument("rest", nargs="*")
    command.set_defaults(function=child)
    arguments = parser.parse_args()
    return arguments.function(arguments)


if __name__ == "__main__":
    sys.exit(main())
