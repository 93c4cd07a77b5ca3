"""Diagnose, tested blind: draws runs and faults, plants each fault in its run, and judges what `diagnose` says of it.

    python benchmarks/planted.py train --seed=1 --data=corpus --work=runs/planted-1
    python benchmarks/planted.py judge --work=runs/planted-1 --out=docs/results/diagnose/draw-3.jsonl
    python benchmarks/planted.py report docs/results/diagnose/draw-3.jsonl

Everything is drawn before anything runs: the ground (planting/ground.py) and the fault (planting/faults.py), which is
planted from outside of the library. What was planted stands beside the directory of the run, and the tool gets that
directory alone. `train` goes on where it was stopped. `--data` is a directory with `enwiki/` and `wikitext-2/`.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.planting import judging
from benchmarks.planting.faults import FAULTS, Planting, gain_place
from benchmarks.planting.ground import draw_ground
from jaxstab.train.config import default_config

ROOT = Path(__file__).parents[1]
RUNS = 120
EXCERPT, DOCUMENT = 2_000_000, 5_000  # characters
# Most of a small run is compiling it; less optimised code does.
FLAGS = "--xla_backend_optimization_level=1"
TEXTS = {
    "enwiki": "enwiki/train-00000-*.jsonl.xz",
    "enwiki-other": "enwiki/train-00001-*.jsonl.xz",
    "wikitext": "wikitext-2/train.txt",
}


def get_config() -> ConfigDict:
    """What all runs have in common."""
    config = default_config()
    config.model.vocabulary, config.model.max_length = 0, 128
    config.model.remat, config.train.loss_chunk = "none", 128
    config.data.length, config.data.workers = 64, 1
    config.eval.every, config.eval.final_batches = 0, 2
    config.checkpoint.every, config.checkpoint.keep_last = 0, 1
    config.stability.measure_every = 25
    config.log.tensorboard_every = 0
    return config


def draw(seed: int, runs: int = RUNS) -> list[dict[str, Any]]:
    """The runs of a draw: a third healthy, of which a third is stopped and goes on; of each fault equally many."""
    random = np.random.default_rng(seed)
    faulty = runs * 2 // 3
    kinds = [*(list(FAULTS) * (faulty // len(FAULTS) + 1))[:faulty], *["none"] * (runs - faulty)]
    return [_drawn(random, str(kind)) | {"run": run} for run, kind in enumerate(random.permutation(kinds))]


def _drawn(random: np.random.Generator, kind: str) -> dict[str, Any]:
    ground = draw_ground(random)
    if kind == "none":
        stop = int(random.integers(90, 200)) if random.random() < 1 / 3 else 0
        return {"fault": "none", "ground": ground, "stop_at": stop}
    while not FAULTS[kind].fits(ground):
        ground = draw_ground(random)
    fault = {"fault": kind, **FAULTS[kind].draw(random, ground)}
    return fault | {"ground": ground, "stop_at": fault["first"] - 1 if FAULTS[kind].resumes else 0}


# Training.


def train(arguments: argparse.Namespace) -> None:
    """Trains the runs of a draw that aren't there yet."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    drawn = draw(arguments.seed, arguments.runs)
    (arguments.work / "draw.json").write_text(json.dumps({"seed": arguments.seed, "runs": drawn}, indent=1))
    index, parts = map(int, arguments.part.split("/"))
    left = [each for each in drawn[index::parts] if not (arguments.work / f"{each['run']:03d}.trained").exists()]
    print(f"{len(left)} of {len(drawn)} runs are left, of 15 to 30 seconds each on one core", flush=True)
    for planted in left:
        started = time.monotonic()
        codes = _train_one(planted, arguments)
        (arguments.work / f"{planted['run']:03d}.trained").write_text(json.dumps(codes))
        print(f"run {planted['run']}: exit {codes} in {time.monotonic() - started:.0f} s", flush=True)


def _train_one(planted: dict[str, Any], arguments: argparse.Namespace) -> list[int]:
    workdir = arguments.work / f"{planted['run']:03d}"
    codes = []
    if planted["stop_at"]:
        codes.append(_child(planted | {"fault": "none"}, workdir, arguments, ["--stop", str(planted["stop_at"])]))
    codes.append(_child(planted, workdir, arguments))
    if planted.get("first") == 1:
        codes.append(_child({**planted, "fault": "none", "config": {}}, _twin(workdir), arguments))
    return codes


def _twin(workdir: Path) -> Path:
    return workdir.with_name(workdir.name + "-twin")


def _child(planted: dict[str, Any], workdir: Path, arguments: argparse.Namespace, more: list[str] | None = None) -> int:
    """Trains in a process of its own; returns its exit code."""
    corpus = _corpus(planted["ground"], arguments)
    keys = {key: value for key, value in planted["ground"].items() if "." in key} | planted.get("config", {})
    keys |= json.loads((corpus / "keys.json").read_text())
    command = [sys.executable, __file__, "child", f"--planted={json.dumps(planted)}", f"--corpus={corpus}"]
    command += [*(more or []), "--", f"--config={__file__}", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in keys.items()]
    with workdir.with_name(workdir.name + ".log").open("a") as log:
        return subprocess.run(command, env=_environment(arguments), stdout=log, stderr=log, check=False).returncode


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    return os.environ | {"XLA_FLAGS": FLAGS, "PYTHONPATH": str(ROOT)}


def _corpus(ground: dict[str, Any], arguments: argparse.Namespace) -> Path:
    """What a ground reads: a folder with its keys, its frequent tokens, and the tokens of another text."""
    from jaxstab.data import load_tokenizer

    folder = arguments.work / f"{ground['text']}-{ground['tokenizer']}"
    if (folder / "keys.json").exists():
        return folder
    folder.mkdir(exist_ok=True)
    text = _excerpt(ground["text"], arguments)
    keys = {"data.source": "text", "data.files": str(text), "data.cache_dir": str(arguments.work / "cache")}
    if ground["tokenizer"] != "bytes":
        keys["data.tokenizer"] = str(folder / "tokenizer.json")
        command = [
            sys.executable,
            "main.py",
            "data",
            "tokenizer",
            f"--config={__file__}",
            f"--config.data.files={text}",
        ]
        command += [
            "--config.data.source=text",
            f"--vocabulary={ground['tokenizer']}",
            f"--out={keys['data.tokenizer']}",
        ]
        subprocess.run(command, env=_environment(arguments), cwd=ROOT, check=True, capture_output=True)
    tokenizer = load_tokenizer(keys.get("data.tokenizer", "bytes"), "")

    def tokens(path: Path) -> np.ndarray:
        texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        return np.concatenate(tokenizer.encode(texts)).astype(np.int32)

    np.save(folder / "other.npy", tokens(_excerpt("wikitext" if ground["text"] == "stdlib" else "stdlib", arguments)))
    (folder / "vocabulary").write_text(str(tokenizer.vocabulary))
    frequent = [int(token) for token, _ in collections.Counter(tokens(text).tolist()).most_common(20)]
    (folder / "frequent.json").write_text(json.dumps(frequent))
    (folder / "keys.json").write_text(json.dumps(keys))
    return folder


def _excerpt(text: str, arguments: argparse.Namespace) -> Path:
    """The first EXCERPT characters of a text, as documents."""
    from jaxstab.data import DataConfig
    from jaxstab.data.files import BadLines
    from jaxstab.data.sources import documents, open_source

    path = arguments.work / f"{text}.jsonl"
    if path.exists():
        return path
    keys = {} if text == "stdlib" else {"source": "text", "files": (str(arguments.data / TEXTS[text]),)}
    size, lines = 0, []
    for document in documents(open_source(dataclasses.replace(DataConfig(), **keys)), BadLines(0)):
        for start in range(0, len(document), DOCUMENT):
            lines.append(json.dumps({"text": document[start : start + DOCUMENT]}))
        size += len(document)
        if size > EXCERPT:
            break
    path.write_text("\n".join(lines) + "\n")
    return path


# The process that trains.


def child(arguments: argparse.Namespace) -> int:
    """Trains with the fault planted, in this process."""
    import main

    planted = json.loads(arguments.planted)
    kind = FAULTS.get(planted["fault"])
    _install(kind.plant(planted, arguments.corpus) if kind and kind.plant else Planting(), arguments.stop)
    return main.main(["main.py", *arguments.rest])


def _install(planting: Planting, stop: int) -> None:
    from jaxstab import data
    from jaxstab.train import loop

    build = loop.build

    def planted_build(config: Any, *arguments: Any) -> Any:
        program = build(config, *arguments)
        bad = build(config, *arguments).step if planting.gradients else None
        return dataclasses.replace(program, step=_stepping(planting, stop, program.step, bad))

    loop.build = planted_build
    data.Batches.records = planting.records(data.Batches.records)


def _stepping(planting: Planting, stop: int, step: Callable[..., Any], bad: Callable[..., Any] | None) -> Any:
    """The run's step, with what is planted; the program with bad gradients is traced at the first that it takes."""
    number = None

    def planted_step(state: Any, tokens: Any, hypers: Any) -> Any:
        nonlocal number
        number = int(state.step) + 1 if number is None else number + 1
        if number == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        state, hypers = planting.state(number, state), planting.hypers(number, hypers)
        if number not in planting.bad_gradients:
            return step(state, tokens, hypers)
        assert bad is not None and planting.gradients is not None
        from benchmarks.planting.gradients import changed_gradients

        with changed_gradients(planting.gradients):
            return bad(state, tokens, hypers)

    return planted_step


# Judging.


def judge(arguments: argparse.Namespace) -> None:
    """Asks diagnose of every run that was trained, and writes a line for each."""
    drawn = json.loads((arguments.work / "draw.json").read_text())
    trained = [each for each in drawn["runs"] if (arguments.work / f"{each['run']:03d}.trained").exists()]
    print(f"{len(trained)} runs of {len(drawn['runs'])} to judge, of about 3 seconds each", flush=True)
    lines = []
    for planted in trained:
        lines.append({"seed": drawn["seed"], "planted": planted, **_judged(planted, arguments.work)})
        said = [cause["cause"] for cause in lines[-1]["said"]["causes"][:3]]
        print(planted["run"], planted["fault"], lines[-1].get("verdict", ""), *said, sep=" · ", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(judging.scores(lines))


def _judged(planted: dict[str, Any], work: Path) -> dict[str, Any]:
    workdir = work / f"{planted['run']:03d}"
    line: dict[str, Any] = {"exit": json.loads(workdir.with_name(workdir.name + ".trained").read_text())}
    line["said"] = judging.answer(workdir)
    if planted["fault"] == "none":
        return line
    twin = _twin(workdir) if planted["first"] == 1 else None
    line["effect"] = judging.effect(workdir, planted, twin)
    line["verdict"] = judging.verdict(planted | _gain(planted, workdir), line["said"])
    if twin:
        line["twin"] = judging.answer(twin)
    else:
        copy = judging.as_it_stood(workdir, planted["first"] - 1, workdir.with_name(workdir.name + "-before"))
        line["before"] = judging.answer(copy)
    return line


def _gain(planted: dict[str, Any], workdir: Path) -> dict[str, Any]:
    """The place of a gain that was planted, which its model has by number."""
    from jaxstab.config import from_flat
    from jaxstab.train.config import Config
    from jaxstab.train.program import build

    if planted["fault"] != "gain":
        return {}
    config = from_flat(Config, json.loads((workdir / "config.json").read_text())["config"])
    role, layer = gain_place(build(config, 0).abstract_state.raw, planted["norm"])
    return {"role": role, "layer": layer}


# Following its advice.


def advise(arguments: argparse.Namespace) -> None:
    """Trains runs that were given advice once more with it, up to three for each cause, and tells how they end."""
    lines = [json.loads(line) for line in arguments.answers.read_text().splitlines()]
    given = [line for line in lines if line["said"].get("advice")]
    by_cause: dict[str, list[dict[str, Any]]] = {}
    for line in given:
        by_cause.setdefault(line["said"]["causes"][0]["cause"], []).append(line)
    chosen = [line for each in by_cause.values() for line in each[:3]]
    print(f"{len(given)} of {len(lines)} runs were given advice; {len(chosen)} are trained with it", flush=True)
    with arguments.out.open("w") as file:
        for line in chosen:
            file.write(json.dumps(_advised(line, arguments)) + "\n")
            file.flush()
    print(judging.advice_table([json.loads(line) for line in arguments.out.read_text().splitlines()]))


def _advised(line: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    planted, advice = line["planted"], line["said"]["advice"][0]
    keys = dict(pair.split("=", 1) for pair in advice.split())
    workdir = arguments.work / f"{planted['run']:03d}"
    advised = workdir.with_name(workdir.name + "-advised")
    code = _child(planted | {"config": planted.get("config", {}) | keys}, advised, arguments)
    ends = {"before": judging.last_loss(workdir), "advised": judging.last_loss(advised) if code == 0 else None}
    cause = line["said"]["causes"][0]["cause"]
    return {"run": planted["run"], "fault": planted["fault"], "cause": cause, "advice": advice, "exit": code, **ends}


def report(arguments: argparse.Namespace) -> None:
    """Prints the tables of each file of results."""
    for path in arguments.files:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        print(f"### {path.stem}\n\n{judging.scores(lines)}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("--seed", type=int, required=True)
    training.add_argument("--runs", type=int, default=RUNS)
    training.add_argument("--data", type=Path, required=True)
    training.add_argument("--work", type=Path, required=True)
    training.add_argument("--part", default="0/1", help="i/n: every n-th run from i on, for n processes")
    training.set_defaults(run=train)
    judging_ = commands.add_parser("judge")
    judging_.add_argument("--work", type=Path, required=True)
    judging_.add_argument("--out", type=Path, required=True)
    judging_.set_defaults(run=judge)
    advising = commands.add_parser("advise")
    advising.add_argument("--answers", type=Path, required=True, help="what judge wrote")
    advising.add_argument("--data", type=Path, required=True)
    advising.add_argument("--work", type=Path, required=True)
    advising.add_argument("--out", type=Path, required=True)
    advising.set_defaults(run=advise)
    reporting = commands.add_parser("report")
    reporting.add_argument("files", type=Path, nargs="+")
    reporting.set_defaults(run=report)
    training_process = commands.add_parser("child")
    training_process.add_argument("--planted", required=True)
    training_process.add_argument("--corpus", type=Path, required=True)
    training_process.add_argument("--stop", type=int, default=0)
    training_process.add_argument("rest", nargs="*")
    training_process.set_defaults(run=child)
    arguments = parser.parse_args()
    return arguments.run(arguments) or 0


if __name__ == "__main__":
    sys.exit(main())
