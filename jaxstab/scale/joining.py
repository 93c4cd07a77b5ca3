"""A run's processes joined: from the roll call to the end."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jaxstab.scale.cluster import HostsConfig, Place, place
from jaxstab.scale.hosts import ALONE, Hosts
from jaxstab.scale.many import Many
from jaxstab.scale.peers import call_roll

SHUTDOWN = 60  # seconds that processes wait for each other at the end


@contextlib.contextmanager
def joined(config: HostsConfig, same: Mapping[str, Any]) -> Iterator[Hosts]:
    """Joins the processes of a run, where there are several; JAX sees the devices of all inside the block.

    Args:
      config: where they are found.
      same: what must be the same for all.

    Raises:
      UserError: some are missing, or were started otherwise.
      EndedElsewhere: all end for a reason that process 0 tells.
    """
    here = place(config)
    if here is None:
        yield ALONE
        return
    peers, names = call_roll(here, config.start_seconds, socket.gethostname())
    hosts = Many(here, peers, names, config.silence_seconds)
    try:
        hosts.agree("config", same)
        _initialize(here, config)
        yield hosts
        hosts.close()
    except BaseException as error:
        atexit.register(_exit, getattr(error, "exit_code", 1))
        hosts.fail(error)
        raise
    jax.distributed.shutdown()


def _exit(code: int) -> None:
    """Ends this process after an error without JAX's own farewell, which waits for all and aborts where one is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _initialize(here: Place, config: HostsConfig) -> None:
    # SIGTERM is taken by the run's own handler, for one process as for many.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        f"[{here.host}]:{here.port}" if ":" in here.host else f"{here.host}:{here.port}",
        here.processes,
        here.process,
        here.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=config.start_seconds,
        heartbeat_timeout_seconds=round(2 * config.silence_seconds) + 30,  # who is lost, is heard of before
        shutdown_timeout_seconds=SHUTDOWN,
    )
