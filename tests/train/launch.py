"""Runs of several real processes on this machine, and how they end."""

import contextlib
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import virtual

ROOT = Path(__file__).parents[2]
PROCESS = Path(__file__).with_name("process.py")
DEVICES, SILENCE = 4, 5
OPTIONS = [
    "--config.model.vocabulary=304",
    "--config.reparam.method=sigma_reparam",
    "--config.mesh.replica=2",
    "--config.mesh.fsdp=2",
    "--config.train.accumulation=1",
    "--config.stability.measure=full",
    "--config.stability.measure_every=4",
    "--config.stability.on_nonfinite=rollback",
    "--config.stability.rollback_steps=2",
    "--config.stability.skip_batches=2",
    "--config.checkpoint.keep_last=3",
    "--config.eval.sample_length=4",
]


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def by_config(number, count, address):
    """How a process is told its place by the config."""
    where = [f"--config.hosts.coordinator={address}", f"--config.hosts.processes={count}"]
    return {}, [*where, f"--config.hosts.process={number}"]


def by_slurm(number, count, address):
    """How srun tells it, one process on each of several nodes."""
    host, _, port = address.partition(":")
    variables = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": host,
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": "0",
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{count})",
        "JAX_COORDINATOR_PORT": port,
    }
    return variables, []


def environment(devices=DEVICES):
    """The environment of a process that has so many devices."""
    return virtual.environment(devices) | {"PYTHONPATH": str(ROOT)}


class Launch:
    """Processes of a run, and how they end."""

    def __init__(self, tiny, workdir, count, *, told=by_config, faults=(), own=(), options=(), late=(), networks=None):
        """Starts them.

        Args:
          tiny, workdir, count: of which run, and how many.
          told: how they are told their places.
          faults: by number; see process.py.
          own: options of the command line, by number.
          options: of all.
          late: seconds by which a process starts later, by number.
          networks: one for each of them (`networks.py`); this machine's without.
        """
        address = networks.address if networks else f"localhost:{free_port()}"
        late, self.processes = dict(late), {}
        for number in sorted(range(count), key=lambda number: late.get(number, 0)):
            time.sleep(late.get(number, 0) - max((late.get(other, 0) for other in self.processes), default=0))
            variables, place = told(number, count, address) if count > 1 else ({}, [])
            silence = f"--config.hosts.silence_seconds={SILENCE}"
            command = tiny.command(workdir, *OPTIONS, silence, *options, *place, *dict(own).get(number, ()))[1:]
            self.processes[number] = subprocess.Popen(
                [*(networks.inside(number) if networks else ()), sys.executable, str(PROCESS), *command],
                env=environment(DEVICES // count) | variables | {"FAULT": dict(faults).get(number, "")},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def end_of(self, number, seconds=240):
        """(exit code, what was said, errors) of a process that ends by itself."""
        said = self.processes[number].communicate(timeout=seconds)
        return (self.processes[number].returncode, *said)

    def ends(self, seconds=240):
        """The same of each process; all have ended afterwards."""
        try:
            return [self.end_of(number, seconds) for number in sorted(self.processes)]
        finally:
            self.kill()

    def kill(self):
        """Ends those that haven't."""
        for process in self.processes.values():
            process.kill()
            with contextlib.suppress(ValueError):  # it has been heard out
                process.communicate()


def completed(*arguments, **options):
    ends = Launch(*arguments, **options).ends()
    assert [code for code, *_ in ends] == [0] * len(ends), ends
    return ends


GLOO = r"\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : "


def own_lines(text):
    """Lines that aren't those of Gloo and XLA, which log what they do; threads of Gloo write between each other."""
    return [line for line in re.sub(GLOO, "", text).splitlines() if not re.fullmatch(r"[\d ]*|[WE]\d{4} .*", line)]
