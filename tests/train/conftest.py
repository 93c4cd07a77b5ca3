"""Runs of seconds, on text that the tests write themselves."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import main
from jaxstab.logging import read_measurements, read_metrics
from jaxstab.reparam import METHODS
from jaxstab.train import objective, program, step
from jaxstab.train.config import Config

TINY = Path(__file__).with_name("tiny.py")
WORDS = ["loss", "weight", "spike", "norm", "layer", "token", "step"]
STEPS = 8


class TinyRuns:
    """Runs of tiny.py, and what they left in their workdirs."""

    def __init__(self, corpus: Path):
        self.corpus = corpus
        dice = random.Random(0)
        for name in "abc":  # three units of work, and fewer records than a run reads: an epoch ends in it
            texts = [" ".join(dice.choices(WORDS, k=8)) for _ in range(5)]
            (corpus / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def command(self, workdir: Path, *overrides: str) -> list[str]:
        data = f"--config.data.files={self.corpus}/*.jsonl", f"--config.data.cache_dir={self.corpus}/cache"
        return ["main.py", f"--config={TINY}", f"--workdir={workdir}", *data, *overrides]

    def run(self, workdir: Path, *overrides: str) -> int:
        """Runs in this process; returns the exit code."""
        return main.main(self.command(workdir, *overrides))

    def checkpoints(self, workdir: Path) -> set[str]:
        return {path.name for path in (workdir / "checkpoints").iterdir()}

    def arrays(self, workdir: Path, step: int = STEPS) -> dict[str, np.ndarray]:
        """Every array of a checkpoint, by path."""
        path, reader = workdir / "checkpoints" / str(step) / "state", ocp.PyTreeCheckpointer()
        tree = reader.metadata(path).item_metadata.tree
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)  # whatever saved it
        state = reader.restore(path, restore_args=on_host)
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}

    def lines(self, workdir: Path) -> list[dict[str, Any]]:
        """The metrics, without what time decides."""
        read = read_metrics(workdir / "metrics.jsonl")
        return [{name: value for name, value in line.items() if name != "train/tokens_per_second"} for line in read]

    def steps(self, workdir: Path) -> list[dict[str, Any]]:
        """The metrics of the training steps."""
        return [line for line in self.lines(workdir) if "train/loss" in line]

    def assert_same_arrays(self, workdir: Path, reference: Path, step: int = STEPS) -> None:
        """Asserts that two checkpoints of a step are the same, bit for bit."""
        arrays, wanted = self.arrays(workdir, step), self.arrays(reference, step)
        assert arrays.keys() == wanted.keys()
        for path, array in wanted.items():
            assert (arrays[path].dtype, arrays[path].shape) == (array.dtype, array.shape)
            assert arrays[path].tobytes() == array.tobytes(), path

    def assert_same_end(self, workdir: Path, reference: Path, step: int = STEPS) -> None:
        """Asserts that two runs ended alike, bit for bit, and that each step is reported once."""
        assert [line["step"] for line in self.steps(workdir)] == list(range(1, step + 1))
        assert self.lines(workdir) == self.lines(reference)
        self.assert_same_arrays(workdir, reference, step)
        measured, expected = read_measurements(workdir), read_measurements(reference)
        assert measured.keys() == expected.keys() and measured
        for name, (steps, values) in measured.items():
            assert steps.tolist() == list(range(1, step + 1)), name
            assert values.tobytes() == expected[name][1].tobytes(), name


HOST_ONLY = ("measure_every", "incidents", "max_rollbacks", "rollback_", "skip_")  # of the section `stability`


def what_is_traced(config: Config) -> str:
    """The part of a config that a program depends on: runs which have it in common share a program."""
    default, stability = Config(), config.stability
    host_only = {key: value for key, value in vars(type(stability)()).items() if key.startswith(HOST_ONLY)}
    return repr(
        dataclasses.replace(
            config,
            data=dataclasses.replace(default.data, length=config.data.length),
            train=dataclasses.replace(config.train, extend=0),
            stability=dataclasses.replace(stability, **host_only),
            **{section: getattr(default, section) for section in ("eval", "checkpoint", "log")},
        )
    )


@pytest.fixture(scope="session")
def shared_programs():
    """Runs within this process share programs: tracing and compiling one is most of a short run's time.

    From then on the process adds nothing to JAX's persistent cache, so that XLA never serializes a program that has
    been kept: it has crashed in that. The processes that tests start fill the cache, and all read it.
    """
    programs, build = {}, program.build

    def shared(config: Config, end: int | None = None) -> program.Program:
        # Tests replace functions of the step and methods, which are traced into the program.
        replaced = objective.loss_sums, objective.mean_gradients, step.train_step, *METHODS.values()
        key = what_is_traced(config), end, replaced
        if key not in programs:
            programs[key] = build(config, end)
        return dataclasses.replace(programs[key], setup=dataclasses.replace(programs[key].setup, config=config))

    threshold = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    with pytest.MonkeyPatch.context() as patch:
        for user in ("jaxstab.train.loop", "jaxstab.diagnose.replay", "jaxstab.compare.programs"):
            patch.setattr(importlib.import_module(user), "build", shared)
        yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", threshold)


@pytest.fixture(scope="session")
def tiny(shared_programs: None, tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    return TinyRuns(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def unbroken(tiny: TinyRuns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that was never stopped; not to be changed."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    assert tiny.run(workdir) == 0
    return workdir
