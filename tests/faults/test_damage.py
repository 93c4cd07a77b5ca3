"""What harms a workdir between two starts (tests/faults/harms.py), in small: the run goes on, or one line says why not.

`make soak` does the same to a longer run, in processes of its own.
"""

import gc
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.faults.harms import DAMAGES
from tests.faults.soak import tree

OURS = [name for name in DAMAGES if not name.startswith("cache")]


@pytest.fixture
def part(unbroken, tmp_path):
    """A run that was killed after step 6 of 8, with checkpoints of steps 4 and 6."""
    workdir = Path(shutil.copytree(unbroken, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "8")
    shutil.copytree(unbroken.parent / "four" / "checkpoints" / "4", workdir / "checkpoints" / "4")
    return workdir


@pytest.fixture(scope="module", autouse=True)
def four(tiny, unbroken):
    """The checkpoint of step 4, which the unbroken run has deleted."""
    assert tiny.run(unbroken.parent / "four", "--config.checkpoint.keep_last=9") == 0


@pytest.mark.parametrize("name", OURS)
def test_harm_is_told_and_costs_no_training(name, part, unbroken, tiny, capsys, monkeypatch):
    harm, outcome, told = DAMAGES[name]
    harm(part)
    before = tree(part)
    tracebacks = []  # those that Python prints of what nobody awaits
    monkeypatch.setattr(sys, "unraisablehook", tracebacks.append)
    code = tiny.run(part)
    gc.collect()
    assert not tracebacks
    captured = capsys.readouterr()
    assert re.search(told, captured.out + captured.err)
    if outcome == "refused":
        assert code == 1 and tree(part) == before
        (line,) = (line for line in captured.err.splitlines() if not line.startswith("Tokenising"))
        assert line.startswith("error: ")
        return
    assert code == 0 and "Complete: 8 steps." in captured.out
    tiny.assert_same_arrays(part, unbroken)
    if outcome == "same end":
        tiny.assert_same_end(part, unbroken)
