"""The benchmarks of a plan beside what is measured, and of what it costs to split a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import processes

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_state_of_a_device_is_planned_to_the_byte():
    command = [sys.executable, "benchmarks/planned.py", "--toy"]
    row = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert row["planned"]["state"] == row["measured"]["state"]
    batch = row["planned"]["state"] - row["formula"]["state"]
    assert 0 < batch < 0.15 * row["planned"]["state"]
    least, most = row["measured"]["temporaries"]
    assert 0 < least <= most < 10 * row["planned"]["temporaries"]
    assert len(row["cpu_seconds"]) == 3 and min(row["cpu_seconds"]) > 0


@pytest.mark.slow
def test_what_a_device_sends_is_near_the_formula_but_for_sums_in_place_of_scatters():
    row = processes.sends(2, processes.SIZES | processes.TOY)
    formula, compiled = row["formula"], row["compiled"]
    assert compiled["all-gather f32"] == pytest.approx(formula["weights"], rel=0.05)
    assert compiled["all-reduce f32"] >= 2 * formula["gradients"] > 0


def test_a_checkpoint_s_bytes_are_told_apart_by_who_wrote_them(tmp_path):
    for name, size in {"state/ocdbt.process_0/d/1": 5, "state/ocdbt.process_1/d/2": 7, "record/metadata": 3}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(size))
    assert processes.written(tmp_path) == {"ocdbt.process_0": 5, "ocdbt.process_1": 7, "else": 3}
