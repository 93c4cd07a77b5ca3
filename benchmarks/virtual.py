"""Processes of so many virtual devices, and the memory that they have, for benchmarks that start them."""

from __future__ import annotations

import os
from pathlib import Path


def environment(devices: int) -> dict[str, str]:
    """That of a process with so many virtual devices of the CPU."""
    others = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags = " ".join([f"--xla_force_host_platform_device_count={devices}", *others])
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process's memory, on Linux: what it has, or `VmHWM`, the most since it was last cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
