"""Paths on the command line and in the config: `~` is expanded, object storage refused in one line."""

import shutil
from pathlib import Path

import pytest

import main
from jaxstab.config import ConfigError, local_path
from jaxstab.data import DataConfig

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
CONFIG = f"--config={QUICKSTART}"
COMMANDS = {
    "train": [CONFIG, "--workdir=gs://bucket/run"],
    "train without a config": ["--workdir=s3://bucket/run"],
    "evaluate": ["evaluate", "--workdir=gs://bucket/run"],
    "results": ["evaluate", "--workdir=run", "--results=gs://bucket/results.json"],
    "export": ["export", "--workdir=run", "--out=s3://bucket/model"],
    "tev": ["tev", "gs://bucket/run"],
    "log": ["diagnose", "--log=gs://bucket/log.csv"],
    "cache": ["describe", CONFIG, "--config.data.cache_dir=gs://bucket/cache"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_object_storage_is_refused_in_one_line(name, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(["main.py", *COMMANDS[name]]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ") and "is on object storage" in line
    assert not list(tmp_path.iterdir())  # nothing called "gs:"


def test_the_home_directory_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/run", "--workdir") == f"{tmp_path}/run"
    assert local_path("run", "--workdir") == "run"
    shutil.copy(QUICKSTART, tmp_path / "small.py")
    call = main.parse(["main.py", "train", "--config=~/small.py", "--workdir=~/run"])
    assert call["workdir"] == f"{tmp_path}/run"
    assert main.parse(["main.py", "train", "--config", str(QUICKSTART), "--workdir", "~/run"])["workdir"] == (
        f"{tmp_path}/run"
    )


def test_a_cache_on_object_storage_is_refused():
    with pytest.raises(ConfigError, match=r"data\.cache_dir=s3://b/c is on object storage"):
        DataConfig(cache_dir="s3://b/c")
