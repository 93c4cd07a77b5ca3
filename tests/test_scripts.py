"""The scripts that start runs on clusters: as far as a machine without the hardware can tell."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import main

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
SHELL = sorted(path.name for path in SCRIPTS.iterdir() if path.suffix in (".sh", ".sbatch"))
CONFIG = "--config=configs/wesar.py:size=13b"
TPU = {"TPU": "mine", "ZONE": "us-east5-a", "TYPE": "v5p-128", "CHIPS": "64", "FILESTORE": "10.0.0.2:/share"}
XPK = {"CLUSTER": "pods", "ZONE": "us-east5-a", "TYPE": "v5p-128", "CHIPS": "64", "IMAGE": "image"}
# script: (its environment, its arguments, devices)
RUNS = {
    "node.sh": ({"GPUS": "8"}, ["/w/run", CONFIG], 8),
    "slurm.sbatch": ({"SLURM_NNODES": "8", "SLURM_GPUS_ON_NODE": "4"}, ["/w/run", CONFIG], 32),
    "tpu_gcloud.sh": (TPU, ["train", "/w/run", CONFIG], 64),
    "tpu_xpk.sh": (XPK, ["mine", "/w/run", CONFIG], 64),
}


def dry(script, environment, *arguments):
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *arguments],
        env={**os.environ, **environment, "DRY_RUN": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def command_of(text):
    """The command of main.py in what a script prints, which may be quoted in another one."""
    words = shlex.split(text)
    while not any(word.endswith("main.py") for word in words):
        words = shlex.split(next(word for word in words if "main.py" in word).partition("=")[2])
    at = next(number for number, word in enumerate(words) if word.endswith("main.py"))
    return words[at:]


def assert_trains(command, devices):
    call = main.parse(command)
    assert call.command == "train" and call["workdir"] and call.config().model.width == 5120
    assert call.config().mesh.fsdp == devices


@pytest.mark.parametrize("script", SHELL)
def test_a_script_is_well_formed(script):
    result = subprocess.run(["bash", "-n", str(SCRIPTS / script)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_script_that_trains_is_tried():
    assert {*RUNS, "run.sh"} == set(SHELL)


@pytest.mark.parametrize("script", RUNS)
def test_a_script_starts_a_command_that_main_takes(script, monkeypatch):
    monkeypatch.chdir(ROOT)
    environment, arguments, devices = RUNS[script]
    result = dry(script, environment, *arguments)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert_trains(command_of(line), devices)


def test_options_with_spaces_and_stars_arrive_as_they_were_given():
    option = "--config.data.files=my corpus/*.jsonl"
    for script, (environment, arguments, _) in RUNS.items():
        assert option in command_of(dry(script, environment, *arguments, option).stdout), script


def test_a_slice_is_made_stopped_and_deleted():
    made, stopped, deleted = (dry("tpu_gcloud.sh", TPU, word).stdout for word in ("make", "stop", "delete"))
    assert "--accelerator-type=v5p-128" in made and "10.0.0.2:/share" in made
    assert "TERM" in stopped and "delete mine" in deleted
    assert dry("tpu_gcloud.sh", TPU, "begin").returncode == 1


def test_the_jobset_starts_as_many_processes_as_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    (document,) = yaml.safe_load_all((SCRIPTS / "jobset.yaml").read_text())
    (job,) = document["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (script,) = container["args"]
    config = None
    for index in range(spec["parallelism"]):
        command = command_of(script.replace("$JOB_COMPLETION_INDEX", str(index)))
        assert_trains(command, spec["parallelism"] * container["resources"]["limits"]["nvidia.com/gpu"])
        config = main.parse(command).config().hosts
        assert (config.process, config.processes) == (index, spec["completions"])
    name, job_name = document["metadata"]["name"], job["name"]
    assert config.coordinator == f"{name}-{job_name}-0-0.{name}:{container['ports'][0]['containerPort']}"
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_the_image_has_what_it_copies():
    copied = [line.split()[1:-1] for line in (SCRIPTS / "Dockerfile").read_text().splitlines() if "COPY" in line]
    assert all((ROOT / name).exists() for names in copied for name in names)
