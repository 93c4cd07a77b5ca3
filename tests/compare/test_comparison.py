"""A comparison is what its first run made of it: one law and one config, also for processes that start at once."""

import dataclasses

import pytest

from configs.methods import METHODS
from jaxstab.compare import comparison, read_grid
from jaxstab.compare.comparison import Law, begun
from jaxstab.config import ConfigError, UserError
from jaxstab.train.config import Config

CONFIG = Config()


def grid(method, seed="1"):
    return read_grid(CONFIG, METHODS, [method], [], [seed])


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(comparison, "PATIENCE", 0.3)


def test_processes_that_start_at_once_have_the_law_of_the_first(tmp_path):
    law = Law("small", 1, 0.05)
    with begun(tmp_path, CONFIG, grid("small")) as first:
        with begun(tmp_path, CONFIG, grid("muon", "2")) as second:  # no run has begun
            assert first == second == law
        with pytest.raises(ConfigError, match=r"was begun with 0\.05"), begun(tmp_path, CONFIG, grid("small"), 0.5):
            pass
        longer = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=7))
        with (
            pytest.raises(ConfigError, match=r"train\.steps .there .*, here 7."),
            begun(tmp_path, longer, grid("small")),
        ):
            pass


def test_a_law_that_no_run_has_fixed_binds_nobody_once_its_process_has_ended(tmp_path):
    with begun(tmp_path, CONFIG, grid("small"), 0.1):
        pass
    with begun(tmp_path, CONFIG, grid("muon")) as law:
        assert law == Law("muon", 1, 0.05)
    (tmp_path / "cells" / "muon-0.001-seed1").mkdir(parents=True)
    (tmp_path / "cells" / "muon-0.001-seed1" / "metrics.jsonl").touch()
    with begun(tmp_path, CONFIG, grid("small")) as law:
        assert law == Law("muon", 1, 0.05)


def test_a_process_waits_for_what_the_first_writes_over_what_came_to_nothing(tmp_path, monkeypatch):
    with begun(tmp_path, CONFIG, grid("muon"), 0.5):
        pass
    stale = (tmp_path / "comparison.json").read_text()
    with begun(tmp_path, CONFIG, grid("small")):
        fresh = (tmp_path / "comparison.json").read_text()
        (tmp_path / "comparison.json").write_text(stale)  # as a network file system still shows it
        monkeypatch.setattr(comparison.time, "sleep", lambda _: (tmp_path / "comparison.json").write_text(fresh))
        with begun(tmp_path, CONFIG, grid("small")) as second:
            assert second == Law("small", 1, 0.05)


def test_the_workdir_of_a_run_is_none_of_a_comparison(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run; take another"), begun(tmp_path, CONFIG, grid("small")):
        pass
    assert not (tmp_path / "comparison.json").exists()
