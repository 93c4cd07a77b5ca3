"""An incident, replayed: the steps are bitwise those of the run, and everything is measured at the last ones."""

import json

import numpy as np
import pytest

import main
from jaxstab.diagnose.replay import points
from jaxstab.logging import read_measurements, read_metrics
from tests.train.test_recovery import MARKED, ROLLBACK, hurt

SKIP = [*MARKED, "--config.stability.on_nonfinite=skip"]


def test_measurements_come_closer_to_the_end():
    assert points(101, 140) == [101, 109, 125, 133, 137, 139, 140]
    assert points(7, 7) == [7] and points(1, 3) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["skip", "restart", "rollback"])
def test_a_replay_is_the_run_and_measures_what_went_in(policy, tiny, tmp_path, monkeypatch, capsys):
    hurt(monkeypatch.setattr, {5: "inf_gradient"})
    workdir = tmp_path / "run"
    options = {"rollback": ROLLBACK, "skip": SKIP, "restart": [*SKIP, "--config.optimizer.restart_above=4"]}[policy]
    assert tiny.run(workdir, *options) == 0
    assert main.main(["main.py", "diagnose", f"--workdir={workdir}", "--replay=6"]) == 0
    told = capsys.readouterr().out
    assert "Replaying steps 5 to 6 from checkpoint 4" in told and "Bitwise as it was" in told
    replayed = workdir / "incidents" / "6" / "replay"
    lines = {line["step"]: line for line in read_metrics(replayed / "metrics.jsonl")}
    known = {line["step"]: line for line in read_metrics(workdir / "incidents" / "6" / "metrics.jsonl")}
    for step in range(1, 7):
        assert lines[step]["train/grad_norm"] == pytest.approx(known[step]["train/grad_norm"], rel=0, nan_ok=True)
    steps, values = read_measurements(replayed)["stability/spectral_norm/up_proj"]
    assert steps.tolist() == [5, 6] and np.isfinite(values).all()
    assert (replayed / "report" / "diagnose.html").exists()
    assert json.loads((replayed / "report" / "diagnose.json").read_text())["cause"] == "nonfinite"


def test_a_replay_without_its_incident_is_refused(tiny, unbroken, capsys):
    assert main.main(["main.py", "diagnose", f"--workdir={unbroken}", "--replay=6"]) == 1
    assert f"error: no incident 6 in {unbroken}; there is: none" in capsys.readouterr().err
