"""A run killed at any moment and started again ends as the run that was never killed, bit for bit.

As a script, this file is the run that is killed: it patches the place where SIGKILL is to land, and calls main.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import main
from jaxstab.data.records import SplitWriter
from jaxstab.logging import RunLogger, read_metrics
from jaxstab.reparam import METHODS, Method
from jaxstab.train.evaluation import Evaluation

ROOT = Path(__file__).parents[2]
VARIANTS = {
    "wesar": [],
    "stateful": ["--config.reparam.method=identity", "--config.optimizer.clip_on=effective"],
    "restarting": [
        "--config.init.method=fixup",
        "--config.reparam.method=fixup",
        "--config.model.norm_placement.method=none",
        "--config.model.bias",
        "--config.optimizer.rule.method=spam",
        "--config.optimizer.rule.spam.interval=5",
        "--config.optimizer.rule.spam.grace=2",
        "--config.optimizer.rule.spam.rewarm=3",
    ],
}


def power_iteration():
    """W / σ(W), with the left singular vector as state: it stands in the registry's place of `identity`."""

    def unit(vector):
        return vector / jnp.linalg.norm(vector)

    def init(row, weight, std, key):
        return {"weight": weight}, unit(jax.random.normal(key, weight.shape[:1]))

    def effective(row, stored, left):
        right = unit(left @ stored["weight"])
        left = unit(stored["weight"] @ right)
        return stored["weight"] / (left @ stored["weight"] @ right), jax.lax.stop_gradient(left)

    return Method(lambda row: row.stacked and row.is_matrix, lambda row: {"weight": row}, init, effective)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def after(function, condition):
    """`function`, and a SIGKILL where the condition on its arguments holds."""

    def patched(*arguments, **options):
        result = function(*arguments, **options)
        if condition(*arguments):
            kill()
        return result

    return patched


def kill_in_tokenising():
    calls = iter(range(100))
    SplitWriter.add = after(SplitWriter.add, lambda *_: next(calls) == 2)


def kill_at_metrics_of(step):
    RunLogger.train = after(RunLogger.train, lambda _, at, *rest: at == step)


def kill_before_evaluation_of(step):
    real = Evaluation.run

    def patched(self, at, *rest):
        if at == step:
            kill()
        real(self, at, *rest)

    Evaluation.run = patched


def kill_after_last_evaluation():
    RunLogger.eval = after(RunLogger.eval, lambda _, at, *rest: at == 8)


def kill_in_save():
    rename = os.rename

    def patched(source, target, **options):
        if str(target).endswith("/checkpoints/4"):
            kill()
        rename(source, target, **options)

    os.rename = patched


def kill_in_deletion():
    remove_tree = shutil.rmtree

    def patched(path, *arguments, **options):
        if str(path).endswith("/checkpoints/2"):
            (Path(path).parents[1] / "whole").write_text(str(len(files(Path(path)))))
            os.unlink = after(os.unlink, lambda *_: True)
        remove_tree(path, *arguments, **options)

    shutil.rmtree = patched


PLACES = {
    "tokenising": kill_in_tokenising,
    "first step": lambda: kill_at_metrics_of(1),
    "step": lambda: kill_at_metrics_of(5),
    "save": kill_in_save,
    "deletion": kill_in_deletion,
    "evaluation": lambda: kill_before_evaluation_of(6),
    "before the last evaluation": lambda: kill_before_evaluation_of(8),
    "after the last evaluation": kill_after_last_evaluation,
}


def start(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_killed(place, variant, argv):
    """Runs until SIGKILL lands in `place`."""
    process = start(__file__, place, variant, *argv[1:])
    output = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, output


def register(variant):
    return {"identity": power_iteration} if variant == "stateful" else {}


@pytest.fixture
def variant(request, monkeypatch):
    for name, method in register(request.param).items():
        monkeypatch.setitem(METHODS, name, method)
    return request.param


@pytest.fixture(scope="module")
def references(unbroken):
    return {"wesar": unbroken}


@pytest.fixture
def reference(variant, references, tiny, tmp_path_factory):
    """The workdir of the variant's run that is never killed."""
    if variant not in references:
        references[variant] = tmp_path_factory.mktemp("reference") / variant
        assert tiny.run(references[variant], *VARIANTS[variant]) == 0
    return references[variant]


@pytest.fixture
def resume(variant, reference, tiny, tmp_path):
    """Kills a run in a place, checks that the kill landed there, and compares the end of what goes on from there."""

    def check(place, landed, *overrides):
        workdir, overrides = tmp_path / "run", [*VARIANTS[variant], *overrides]
        run_killed(place, variant, tiny.command(workdir, *overrides))
        landed(workdir)
        assert tiny.run(workdir, *overrides) == 0
        tiny.assert_same_end(workdir, reference)
        assert tiny.checkpoints(workdir) == {"6", "8"}

    return check


def files(directory):
    return [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]


def last_metrics(workdir):
    """The step of the last whole line; 0 where there is none."""
    path = workdir / "metrics.jsonl"
    return read_metrics(path)[-1]["step"] if path.exists() and path.stat().st_size else 0


@pytest.mark.parametrize("variant", ["wesar"], indirect=True)
def test_killed_in_tokenising(resume, tmp_path):
    def landed(workdir):
        (half,) = cache.glob("*.building-*")
        assert any(path.stat().st_size for path in files(half))
        assert not list(cache.rglob("manifest.json")) and not files(workdir)

    cache = tmp_path / "cache"
    resume("tokenising", landed, f"--config.data.cache_dir={cache}")
    (whole,) = (path for path in cache.iterdir() if path.is_dir())
    assert (whole / "manifest.json").exists()


@pytest.mark.parametrize("variant", ["wesar"], indirect=True)
def test_killed_in_the_first_steps(resume, tiny):
    def landed(workdir):
        assert last_metrics(workdir) == 1
        assert not tiny.checkpoints(workdir)

    resume("first step", landed)


@pytest.mark.parametrize("variant", ["wesar", "stateful"], indirect=True)
def test_killed_in_a_step(resume, reference, tiny, variant):
    def landed(workdir):
        assert last_metrics(workdir) == 5, "step 6 was under way"
        assert tiny.checkpoints(workdir) <= {"2", "4", "4.orbax-checkpoint-tmp"}

    assert any(path.startswith("reparam/") for path in tiny.arrays(reference)) == (variant == "stateful")
    resume("step", landed)


@pytest.mark.parametrize("variant", ["restarting"], indirect=True)
def test_killed_between_two_restarts_of_the_moments(resume, reference, tiny, variant):
    """They start anew in update 5, and updates grow back for three from there; the run goes on from step 6."""

    def landed(workdir):
        assert last_metrics(workdir) == 6 and "6" in tiny.checkpoints(workdir)

    def second_moments(step):
        arrays = tiny.arrays(reference, step)
        (updates,) = (array for path, array in arrays.items() if path.endswith("/updates"))
        assert updates == step
        return sum(array.sum() for path, array in arrays.items() if "/second/" in path)

    resume("evaluation", landed)
    assert second_moments(8) > 1.6 * second_moments(6), "of four gradients and of two; without a restart of 8 and 6"


@pytest.mark.parametrize("variant", ["wesar"], indirect=True)
def test_killed_in_a_save(resume, tiny):
    def landed(workdir):
        assert tiny.checkpoints(workdir) == {"2", "4.orbax-checkpoint-tmp"}
        assert sum(path.stat().st_size for path in files(workdir / "checkpoints/4.orbax-checkpoint-tmp")) > 10_000

    resume("save", landed)


@pytest.mark.parametrize("variant", ["stateful"], indirect=True)
def test_killed_in_the_deletion_of_an_old_checkpoint(resume, tiny):
    def landed(workdir):
        assert tiny.checkpoints(workdir) >= {"2", "4", "6"}
        assert 0 < len(files(workdir / "checkpoints" / "2")) < int((workdir / "whole").read_text()), (
            "half of it is gone"
        )

    resume("deletion", landed)


@pytest.mark.parametrize("variant", ["wesar"], indirect=True)
@pytest.mark.parametrize(("place", "lines"), [("before the last evaluation", 0), ("after the last evaluation", 1)])
def test_killed_in_the_last_evaluation_it_is_made_up_for(resume, tiny, place, lines):
    def landed(workdir):
        evaluations = [line for line in tiny.lines(workdir) if "eval/validation/loss" in line and line["step"] == 8]
        assert len(evaluations) == lines and last_metrics(workdir) == 8
        assert "8" in tiny.checkpoints(workdir), "what was trained is saved before it is evaluated"

    resume(place, landed)


@pytest.mark.parametrize("variant", ["wesar"], indirect=True)
def test_killed_in_an_evaluation_it_is_made_up_for(resume, tiny):
    def landed(workdir):
        assert "train/loss" in tiny.lines(workdir)[-1] and last_metrics(workdir) == 6
        assert "6" in tiny.checkpoints(workdir)

    resume("evaluation", landed)


@pytest.mark.slow
def test_killed_at_random_moments(tiny, tmp_path):
    longer = ["--config.train.extend=142", "--config.checkpoint.every=7", "--config.eval.every=40"]
    assert tiny.run(tmp_path / "reference", *longer) == 0
    dice, workdir = random.Random(0), tmp_path / "run"
    for _ in range(2):
        before, process = last_metrics(workdir), start(ROOT / "main.py", *tiny.command(workdir, *longer)[1:])
        while last_metrics(workdir) <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.5))
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL, process.communicate()
        assert before < last_metrics(workdir) < 150
    assert tiny.run(workdir, *longer) == 0
    tiny.assert_same_end(workdir, tmp_path / "reference", 150)


if __name__ == "__main__":
    chosen_place, chosen_variant, *rest = sys.argv[1:]
    METHODS.update(register(chosen_variant))
    PLACES[chosen_place]()
    sys.exit(main.main(["main.py", *rest]))
