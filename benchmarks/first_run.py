"""The grid behind docs/results/first-run.md: small, he and wesar, each at three learning rates, on the same tokens.

    python benchmarks/first_run.py run --enwiki=corpus --wikitext=wikitext-2 --workdir=runs/first-run
    python benchmarks/first_run.py report --workdir=runs/first-run --out=docs/results/first-run

`run` starts main.py once a cell, in turn; stopped and started again, it goes on where it was. `report` writes the
table, the curves and the raw metrics.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

RATES = ("1e-3", "3e-3", "1e-2")
# The paper's sigma, and a larger one: the best depends on the width, so one value would be unfair to WeSaR.
SIGMAS = {"wesar": "0.0063245553", "wesar, sigma 0.025": "0.025"}
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


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def report(arguments: argparse.Namespace) -> None:
    """Writes results.csv, the curves of every run and the figure."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        sets = ("validation", "enwiki", "wikitext2")
        writer.writerow(
            ["method", "learning_rate", *(f"{name}_loss" for name in sets), "train_loss_last_30", "clipped"]
        )
        for name, rate in sorted(CELLS):
            lines = metrics(cell_directory(arguments.workdir, name, rate))
            steps = [line for line in lines if "train/loss" in line]
            last = {key: value for line in lines for key, value in line.items()}
            train = sum(line["train/loss"] for line in steps[-30:]) / 30
            clipped = sum(line["train/clipped"] for line in steps) / len(steps)
            losses = [f"{last[f'eval/{each}/loss']:.4f}" for each in sets]
            writer.writerow([name, rate, *losses, f"{train:.4f}", f"{clipped:.3f}"])


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
