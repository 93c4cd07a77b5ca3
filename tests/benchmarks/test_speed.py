"""Every benchmark of speed runs, at toy size; how fast things are is for an idle machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["frameworks", "methods", "growth", "compile"])
def test_a_benchmark_of_speed_runs_at_toy_size(name):
    command = [sys.executable, "benchmarks/speed.py", name, "--toy"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    _, *rows = map(json.loads, run.stdout.splitlines())
    assert rows and all(row["benchmark"] == name for row in rows)
    timed = [row for row in rows if "ratio" in row]
    assert all(row["ms"] > 0 and row["interval"][0] <= row["ratio"] <= row["interval"][1] for row in timed)
    assert timed or name in ("frameworks", "compile")


def test_an_unknown_benchmark_is_told_of_in_one_line():
    command = [sys.executable, "benchmarks/speed.py", "fast"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and "no benchmark fast; there are frameworks, methods, growth, compile" in run.stderr


def test_a_profile_adds_up_and_knows_its_parts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import parts

    sizes = dict(width=16, layers=2, heads=2, vocabulary=64, batch=2, length=16)
    measured = parts.profile(sizes, steps=2, method="wesar")
    assert set(measured) <= set(parts.PARTS) and measured["linear layers, products"] > 0
    assert parts.part_of("jit(traced)/jvp(layers.attention_branch)/self_attn/q_proj/dot_general").endswith("products")
