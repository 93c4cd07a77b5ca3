"""Which process of a run this is: from the config, or from the environment of what started it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from jaxstab.config import ConfigError, Options, Range, option

PORT = 8476  # where none is given
STARTERS = ("slurm", "ompi", "gketpu", "gcetpu")  # JAX's names of the environments that it reads

# Variables by which starters tell a process its number, their number, its number on its host, and how many are there.
# Slurm and Open MPI, and MPICH and Intel MPI, which tell nothing of where process 0 is.
RANKS = (
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


@dataclasses.dataclass(frozen=True)
class HostsConfig(Options):
    """The processes that train one model together, one per host (or per GPU)."""

    coordinator: str = option(
        "",
        "host:port of process 0; empty: as Slurm, GKE, Cloud TPU or Open MPI says, or else one process trains alone.",
    )
    processes: int = option(0, "How many there are; 0: as the environment says.", Range(0))
    process: int = option(-1, "The number of this one, from 0; -1: as the environment says.", Range(-1))
    cluster: str = option("auto", "Whether the environment is asked at all.", choices=("auto", "none"))
    start_seconds: int = option(300, "How long all wait for the last one to start.", Range(1))
    silence_seconds: float = option(
        60.0, "A process that isn't heard of for so long is lost, and the others end.", Range(above=0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.processes or self.process >= 0) and not self.coordinator:
            raise ConfigError(
                "hosts.processes and hosts.process need hosts.coordinator, where process 0 is found: for instance "
                f"hosts.coordinator=node0:{PORT}"
            )
        if self.coordinator and not re.fullmatch(r"(\[.+\]|[^:]+)(:\d+)?", self.coordinator):
            raise ConfigError(f"hosts.coordinator={self.coordinator} is no host:port: for instance node0:{PORT}")
        if self.processes and self.process >= self.processes:
            raise ConfigError(
                f"hosts.process={self.process} is no number of {self.processes} processes: they are numbered from 0"
            )


@dataclasses.dataclass(frozen=True)
class Place:
    """A process among those of its run.

    Attributes:
      host, port: where process 0 is found.
      processes: how many there are.
      process: its number.
      devices: the accelerators of its host that are its own; None where all are.
    """

    host: str
    port: int
    processes: int
    process: int
    devices: tuple[int, ...] | None = None


def place(config: HostsConfig, environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process; None where it trains alone.

    Raises:
      ConfigError: a coordinator is given, and neither the config nor the environment says how many processes there are.
    """
    if config.cluster == "none" and not config.coordinator:
        return None
    ranks = {} if config.cluster == "none" else _ranks(environment)
    if not config.coordinator:
        return _of_starter(config, ranks)
    processes, process = config.processes or ranks.get("processes", 0), config.process
    process = process if process >= 0 else ranks.get("process", -1)
    if not processes or process < 0:
        raise ConfigError(
            f"hosts.coordinator={config.coordinator} needs hosts.processes and hosts.process, which the environment "
            "doesn't tell: say how many processes there are, and which one this is"
        )
    host, port = _split(config.coordinator)
    return _several(host, port, processes, process, ranks)


def _split(address: str) -> tuple[str, int]:
    """The host and the port of an address; that of IPv6 stands in brackets."""
    host, _, port = address.rpartition(":") if not address.endswith("]") and ":" in address else (address, "", "")
    return host.strip("[]"), int(port or PORT)


def _several(host: str, port: int, processes: int, process: int, ranks: Mapping[str, int]) -> Place | None:
    if processes == 1:
        return None
    devices = (ranks["local"],) if ranks.get("on_host", 1) > 1 else None
    return Place(host, port, processes, process, devices)


def _ranks(environment: Mapping[str, str]) -> dict[str, int]:
    """What variables tell: processes, process, local (its number on its host) and on_host (how many are there)."""
    for process, processes, local, on_host in RANKS:
        if process in environment and processes in environment:
            return {
                "process": int(environment[process]),
                "processes": int(environment[processes]),
                "local": int(environment.get(local, 0)),
                "on_host": int(re.match(r"\d*", environment.get(on_host, ""))[0] or 1),  # type: ignore[index]
            }
    return {}


def _of_starter(config: HostsConfig, ranks: Mapping[str, int]) -> Place | None:
    """The place that JAX reads off the environment."""
    starter = _starter()
    if starter is None or starter.get_process_count() == 1:
        return None
    address = starter.get_coordinator_address(config.start_seconds, os.environ.get("JAX_COORDINATOR_PORT"))
    return _several(*_split(address), starter.get_process_count(), starter.get_process_id(), ranks)


def _starter() -> Any | None:
    """JAX's class for the environment of this process, which has no public name."""
    from jax._src.clusters import ClusterEnv

    known = (each for each in ClusterEnv._cluster_types if each.name in STARTERS)
    return next((each for each in known if each.is_env_present()), None)
