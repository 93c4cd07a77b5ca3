"""The grid behind docs/results/first-run.md: small, he and wesar, each at three learning rates, on the same tokens.

    python benchmarks/first_run.py run --enwiki=corpus --wikitext=wikitext-2 --workdir=runs/first-run
    python benchmarks/first_run.py report --workdir=runs/first-run --out=docs/results/first-run

`run` starts main.py once per cell, in turn; stopped and started again, it goes on where it was. `report` writes the
table, the curves and the raw metrics.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np

from jaxstab.logging import read_measurements, read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RATES = ("1e-3", "3e-3", "1e-2")
# The paper's sigma, and a larger one: the best depends on the width, so one value would be unfair to WeSaR.
SIGMAS = {"wesar": "0.0063245553", "wesar, sigma 0.025": "0.025"}
TUNED = "wesar, sigma 0.025"
SETS = ("validation", "enwiki", "wikitext2")
CELLS = [(name, rate) for rate in ("3e-3", "1e-3", "1e-2") for name in ("small", "he", *SIGMAS)]


def cell_directory(workdir: Path, name: str, rate: str) -> Path:
    return workdir / f"{name.replace(', sigma ', '-')}-{rate}"


def run(arguments: argparse.Namespace) -> None:
    """Runs every cell of the grid that isn't complete."""
    enwiki, wikitext = arguments.enwiki, arguments.wikitext
    for name, rate in CELLS:
        method = name.split(",")[0]
        overrides = {
            "optimizer.learning_rate": rate,
            "reparam.wesar.sigma": SIGMAS.get(name, "0.0063245553"),
            "data.files": f"{enwiki}/train-*.jsonl.xz",
            "data.tokenizer": arguments.tokenizer,
            "eval.texts": f"('enwiki={enwiki}/val.jsonl.xz', 'wikitext2={wikitext}/valid.txt')",
        }
        command = [sys.executable, "main.py", f"--config=configs/proxy.py:method={method}"]
        command += [f"--workdir={cell_directory(arguments.workdir, name, rate)}"]
        command += [f"--config.{key}={value}" for key, value in overrides.items()]
        print(" ".join(command), flush=True)
        subprocess.run(command, check=False)


def report(arguments: argparse.Namespace) -> None:
    """Writes results.csv, the raw metrics of every run, and the figures."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = {cell: cell_directory(arguments.workdir, *cell) for cell in sorted(CELLS)}
    with (arguments.out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["method", "learning_rate", *(f"{name}_loss" for name in SETS), "train_loss_last_30", "clipped"]
        )
        writer.writerows([name, rate, *summary(directory)] for (name, rate), directory in runs.items())
    for directory in runs.values():
        target = arguments.out / f"{directory.name}.jsonl.gz"
        target.write_bytes(gzip.compress((directory / "metrics.jsonl").read_bytes(), mtime=0))
    draw_comparison(runs, arguments.out / "small-vs-wesar.png")
    draw_grid(runs, arguments.out / "learning-rates.png")


def summary(directory: Path) -> list[str]:
    """Final losses, the mean training loss of the last 30 steps, and the share of steps that clipped."""
    lines = read_metrics(directory / "metrics.jsonl")
    steps = [line for line in lines if "train/loss" in line]
    last = {key: value for line in lines for key, value in line.items()}
    losses = [f"{last[f'eval/{each}/loss']:.4f}" for each in SETS]
    train = np.mean([line["train/loss"] for line in steps[-30:]])
    return [*losses, f"{train:.4f}", f"{np.mean([line['train/clipped'] for line in steps]):.3f}"]


def curve(directory: Path, key: str) -> tuple[list[float], list[float]]:
    lines = [line for line in read_metrics(directory / "metrics.jsonl") if key in line]
    return [line["step"] for line in lines], [line[key] for line in lines]


def best(runs: dict[tuple[str, str], Path], name: str) -> str:
    """The learning rate at which a method ends lowest on held-out Wikipedia."""
    return min(RATES, key=lambda rate: curve(runs[name, rate], "eval/enwiki/loss")[1][-1])


def draw_comparison(runs: dict[tuple[str, str], Path], out: Path) -> None:
    """Loss, and update ratios of the last block's MLP (as Figure 1 of Nishida et al. 2024), each at its best rate."""
    figure, (top, *bottom) = plt.subplots(1, 3, figsize=(13, 3.8), width_ratios=(1.2, 1, 1))
    for axes, name, colour in zip(bottom, ("small", TUNED), ("tab:red", "tab:blue"), strict=True):
        rate = best(runs, name)
        top.plot(*curve(runs[name, rate], "train/loss"), color=colour, linewidth=1, label=f"{name}, {rate}")
        measured = read_measurements(runs[name, rate])
        for role, shade in (("up_proj", "tab:gray"), ("down_proj", "tab:orange")):
            steps, values = measured[f"stability/update_ratio/{role}"]
            axes.semilogy(steps, values[:, -1], color=shade, linewidth=1, label=role)
        axes.set(xlabel="step", title=f"{name}: update ratio", ylim=(3e-4, 3e-1))
        axes.legend()
    top.set(xlabel="step", title="training loss, each at its best learning rate")
    top.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def draw_grid(runs: dict[tuple[str, str], Path], out: Path) -> None:
    """Final loss on held-out Wikipedia against the learning rate."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for name in ("small", "he", *SIGMAS):
        losses = [curve(runs[name, rate], "eval/enwiki/loss")[1][-1] for rate in RATES]
        axes.semilogx([float(rate) for rate in RATES], losses, marker="o", label=name)
    axes.set(xlabel="learning rate", ylabel="loss, Wikipedia", title="10M parameters, 614,400 tokens")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--enwiki", default="corpus")
    parser.add_argument("--wikitext", default="wikitext-2")
    parser.add_argument("--tokenizer", default="runs/enwiki-8192.json")
    parser.add_argument("--workdir", type=Path, default=Path("runs/first-run"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/first-run"))
    arguments = parser.parse_args()
    {"run": run, "report": report}[arguments.command](arguments)


if __name__ == "__main__":
    main()
