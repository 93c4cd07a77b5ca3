"""Sequence-length warmup: lengths follow from the step alone, so that a resumed run is the unbroken one."""

import io
import json
import random
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

from jaxstab.config import ConfigError
from jaxstab.logging import read_metrics
from jaxstab.scale import chips
from jaxstab.train import loop
from jaxstab.train.config import default_config, resolve
from jaxstab.train.step_io import LengthChange, length_at, length_schedule, tokens_before

LENGTHS, WARMUP, FULL, STEPS = (4, 8), 4, 16, 6
PEAK = 1e9  # FLOP/s that the device is taken to have
EXPECTED = [4, 4, 8, 8, 16, 16]  # 4 + 12 t / 4, rounded down to an announced length


def linear(lengths, warmup, full, update):
    """Li et al. 2022: linear pacing, here rounded down to an announced length, in exact integers."""
    grown = lengths[0] * warmup + (full - lengths[0]) * min(update, warmup)
    return max(length for length in (*lengths, full) if length * warmup <= grown)


@pytest.mark.parametrize("lengths", [(4, 8), (32, 64, 128), (8, 9, 10), (255,)])
@pytest.mark.parametrize("warmup", [1, 2, 7, 1000])
def test_lengths_grow_linearly_over_the_announced_ones(lengths, warmup):
    schedule = length_schedule(lengths, warmup, 256)
    expected = [linear(lengths, warmup, 256, update) for update in range(warmup + 3)]
    assert [length_at(schedule, update) for update in range(warmup + 3)] == expected
    assert [tokens_before(schedule, update) for update in range(warmup + 3)] == [
        sum(expected[:t]) for t in range(len(expected))
    ]
    assert expected[0] == lengths[0] or warmup < 2
    assert expected[warmup] == 256


def test_without_warmup_every_update_has_the_full_length():
    assert length_schedule((), 0, 256) == (LengthChange(0, 256),)
    assert tokens_before(length_schedule((), 0, 256), 10) == 2560


@pytest.mark.parametrize(
    ("warmup", "lengths", "message"),
    [
        (10, (), "take effect together"),
        (0, (4,), "take effect together"),
        (10, (8, 4), r"train.warmup_lengths=\(8, 4\) must be ascending, each of them once"),
        (10, (4, 4), r"train.warmup_lengths=\(4, 4\) must be ascending, each of them once"),
        (10, (0, 4), r"train.warmup_lengths=\(0, 4\) must each be at least 1"),
        (10, (4, 256), "must be shorter than data.length=256"),
    ],
)
def test_lengths_that_cannot_be_are_refused(warmup, lengths, message):
    config = default_config()
    config.data.length = 256
    config.train.length_warmup, config.train.warmup_lengths = warmup, lengths
    with pytest.raises(ConfigError, match=message):
        resolve(config)


@pytest.fixture(scope="module")
def config(tmp_path_factory, shared_programs):
    corpus = tmp_path_factory.mktemp("corpus")
    dice = random.Random(0)
    texts = [" ".join(dice.choices(["loss", "weight", "spike", "norm"], k=12)) for _ in range(12)]
    (corpus / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    values = default_config()
    values.model.update({"width": 8, "layers": 1, "heads": 2, "vocabulary": 0, "max_length": FULL, "remat": "none"})
    values.train.update({"steps": STEPS, "batch_size": 4, "loss_chunk": 16})
    values.train.update({"length_warmup": WARMUP, "warmup_lengths": LENGTHS})
    values.optimizer.warmup = 2
    values.data.update({"source": "text", "files": (f"{corpus}/*.jsonl",), "cache_dir": f"{corpus}/cache"})
    values.data.update({"length": FULL, "validation_fraction": 0.3, "workers": 1})
    values.eval.every = 0
    values.checkpoint.update({"every": 1, "keep_last": STEPS})
    return resolve(values)


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    """The workdir of an unbroken run, its programs, and the shapes of the batches that they were given."""
    programs = []

    def build(*arguments):
        programs.append(true_build(*arguments))
        return programs[-1]

    workdir, true_build = tmp_path_factory.mktemp("unbroken") / "run", loop.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build", build)
        patch.setitem(chips.GPUS, jax.devices()[0].device_kind, PEAK)
        loop.train(config, workdir, Console(quiet=True))
    return workdir, programs


def losses(workdir):
    return [line for line in read_metrics(workdir / "metrics.jsonl") if "train/loss" in line]


def arrays(workdir):
    state = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(STEPS) / "state")
    return [(jax.tree_util.keystr(path), np.asarray(x)) for path, x in jax.tree_util.tree_leaves_with_path(state)]


@pytest.mark.slow
def test_each_length_is_compiled_once(runs):
    (program,) = runs[1]
    assert program.step._cache_size() == len(set(EXPECTED)) == 3


@pytest.mark.slow
def test_tokens_are_counted_as_they_are_trained_on(runs):
    tokens = [line["train/tokens"] for line in losses(runs[0])]
    assert tokens == [4 * total for total in np.cumsum(EXPECTED)]


@pytest.mark.slow
def test_the_flops_of_a_step_are_those_of_its_length(runs):
    vocabulary = runs[1][0].setup.config.model.vocabulary
    for line, length in zip(losses(runs[0]), EXPECTED, strict=True):
        flops = 6 * (12 * 8 * 8 + 8 * vocabulary) + 12 * 1 * 8 * length
        assert line["train/mfu"] == pytest.approx(line["train/tokens_per_second"] * flops / PEAK, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_resumed_before_at_and_after_a_change_of_length_is_the_unbroken_one(config, runs, tmp_path, at):
    unbroken, _ = runs
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir)
    for step in range(at + 1, STEPS + 1):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    loop.train(config, workdir, Console(quiet=True))
    for name in ("step", "train/loss", "train/tokens", "train/grad_norm"):
        assert [line[name] for line in losses(workdir)] == [line[name] for line in losses(unbroken)]
    assert "train/mfu" not in losses(workdir)[-1]  # of a device whose peak isn't known
    for (path, array), (wanted_path, wanted) in zip(arrays(workdir), arrays(unbroken), strict=True):
        assert path == wanted_path and array.tobytes() == wanted.tobytes(), path


def test_the_plan_tells_the_lengths_ahead(config, tmp_path):
    console = Console(record=True, file=io.StringIO(), width=300)
    workdir = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "advance", lambda self, state, *_: state)
        loop.train(config, workdir, console)
    assert "(records cut to 4, 8 after 2, 16 after 4 steps)" in console.export_text()
