"""The benchmark of what a run costs beside the device's program runs, and its parts add up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_parts_of_a_steps_host_work_add_up():
    command = [sys.executable, "benchmarks/host.py", "--toy"]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    parts = found["cpu_ms_a_step"]
    total = parts.pop("total")
    assert parts.keys() >= {"hypers", "unpack", "log", "batch", "clock"}
    assert all(ms >= 0 for ms in parts.values()) and sum(parts.values()) == pytest.approx(total, abs=0.01)
    assert len(found["first_step_s"]) == 1 and found["first_step_s"][0] > 0
