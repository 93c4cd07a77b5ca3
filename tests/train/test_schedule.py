"""The learning rate of a run: by its steps, those that were skipped included, and none where it ends at 0."""

import pytest

from tests.train.test_recovery import MARKED, hurt

LINEAR = "--config.optimizer.schedule.method=linear"
SKIP = "--config.stability.on_nonfinite=skip"


def test_skipped_steps_do_not_hold_the_schedule_back(tiny, tmp_path, monkeypatch, capsys):
    hurt(monkeypatch.setattr, dict.fromkeys([2, 3, 5], "nan_loss"))
    assert tiny.run(tmp_path / "run", *MARKED, LINEAR, SKIP) == 0
    steps = tiny.steps(tmp_path / "run")
    assert [line["step"] for line in steps if line["train/skipped"]] == [3, 4, 6]
    # Two steps of warmup, then a line from 1 to 0 over the remaining six.
    shape = [1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [line["train/learning_rate"] for line in steps] == pytest.approx([1e-3 * each for each in shape])
    out = capsys.readouterr().out
    assert "another --workdir" in out and "train.extend" not in out, "a run that ends at a rate of 0 isn't extended"
    assert tiny.run(tmp_path / "run", *MARKED, LINEAR, SKIP, "--config.train.extend=4") == 1
    assert "train.extend=4 would train at a rate of 0" in capsys.readouterr().err
