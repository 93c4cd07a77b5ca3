"""The benchmarks of a plan beside what is measured, and of what it costs to split a run, tell what they say they do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def rows(benchmark):
    command = [sys.executable, f"benchmarks/{benchmark}.py", "--toy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_the_state_of_a_device_is_planned_to_the_byte():
    (row,) = rows("planned")
    assert row["planned"]["state"] == row["measured"]["state"]
    batch = row["planned"]["state"] - row["formula"]["state"]
    assert 0 < batch < 0.15 * row["planned"]["state"]
    least, most = row["measured"]["temporaries"]
    assert 0 < least <= most < 10 * row["planned"]["temporaries"]
    assert len(row["cpu_seconds"]) == 3 and min(row["cpu_seconds"]) > 0
