"""What accelerators can do at best, for model FLOPs utilization (MFU) and for plans."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from jaxstab.config import ConfigError, unknown

# Dense bf16 FLOP/s by JAX's `device_kind`: half of what NVIDIA's data sheets print with sparsity. Chips without bf16
# products (V100 and older), and slices of a GPU, aren't here.
GPUS = {
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA GH200 480GB": 989.4e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
# The same of one TensorCore. Chips of v2 to v4, v5p and v7x have two: on v2, v3 and v7x each is a device, while on v4
# and v5p both are one device ("megacore"). From Google's pages on each version, which give it per chip.
TPU_CORES = {
    "TPU v2": 46e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12 / 2,
    "TPU v5": 459e12 / 2,  # v5p
    "TPU v5p": 459e12 / 2,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v6 lite": 918e12,  # v6e
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
}


def peak_flops(devices: Iterable[Any]) -> float | None:
    """The dense bf16 FLOP/s that these JAX devices reach together at best; None where one's kind isn't known."""
    peaks = [
        GPUS.get(device.device_kind, TPU_CORES.get(device.device_kind, 0) * getattr(device, "num_cores", 1))
        for device in devices
    ]
    return sum(peaks) if all(peaks) else None


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip has.

    Attributes:
      kind: JAX's `device_kind` of its devices.
      memory: bytes of its memory.
      bandwidth: bytes that its memory reads or writes in a second.
      interconnect: bytes that it sends in a second over all its links together: half of what is printed for both ways.
      source: where these are from.
      axes: axes of a slice: 2 or 3 of a torus, or 1, a number of GPUs.
      devices: JAX devices of a chip, each with a share of all the above.
      cores: libtpu's name of how a chip's cores are joined to devices.
      most: chips that the interconnect joins.
      network: bytes that a chip sends in a second to those beyond them.
    """

    kind: str
    memory: float
    bandwidth: float
    interconnect: float
    source: str
    axes: int = 1
    devices: int = 1
    cores: str = "default"
    most: int = 8
    network: float = 0.0

    @property
    def is_tpu(self) -> bool:
        return self.kind in TPU_CORES

    @property
    def peak(self) -> float:
        """Dense bf16 FLOP/s."""
        return GPUS[self.kind] if not self.is_tpu else TPU_CORES[self.kind] * TENSOR_CORES.get(self.kind, 1)

    def sends(self, chips: int) -> float:
        """Bytes that a chip sends in a second where `chips` of them work together."""
        return self.interconnect if chips <= self.most else self.network


TENSOR_CORES = {"TPU v4": 2, "TPU v5p": 2, "TPU7x": 2}  # of those that have more than one
GIB, GB = 2**30, 1e9
TPUS = "https://docs.cloud.google.com/tpu/docs/"
NVIDIA = "https://www.nvidia.com/en-us/data-center/"
# A GPU's network is a card of 400 Gbit/s (A100: 200), as in a DGX. Beyond a pod, TPUs have their host's network, which
# chips share: it isn't in the table, since nobody splits one replica over it.
CHIPS = {
    "v4": Chip("TPU v4", 32 * GIB, 1228 * GB, 300 * GB, TPUS + "v4", axes=3, cores="megacore", most=4096),
    "v5e": Chip("TPU v5e", 16 * GIB, 819 * GB, 200 * GB, TPUS + "v5e", axes=2, most=256),
    "v5p": Chip("TPU v5p", 95 * GIB, 2765 * GB, 600 * GB, TPUS + "v5p", axes=3, most=8960),
    "v6e": Chip("TPU v6e", 32 * GIB, 1638 * GB, 400 * GB, TPUS + "v6e", axes=2, most=256),
    "tpu7x": Chip("TPU7x", 192 * GIB, 7380 * GB, 600 * GB, TPUS + "tpu7x", axes=3, devices=2, most=9216),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 80 * GB, 2039 * GB, 300 * GB, NVIDIA + "a100/", network=25 * GB),
    "h100": Chip("NVIDIA H100 80GB HBM3", 80 * GB, 3350 * GB, 450 * GB, NVIDIA + "h100/", network=50 * GB),
    "h200": Chip("NVIDIA H200", 141 * GB, 4800 * GB, 450 * GB, NVIDIA + "h200/", network=50 * GB),
    "b200": Chip("NVIDIA B200", 180 * GB, 7700 * GB, 900 * GB, NVIDIA + "dgx-b200/", network=50 * GB),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that are rented together: `v5p:4x4x4`, `h100:64`."""

    name: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """How many devices JAX sees."""
        return self.chips * self.chip.devices

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.shape))}"


def read_slice(text: str) -> Slice:
    """Reads `v5p:4x4x4`; raises ConfigError at what is no slice of a known chip."""
    name, _, sizes = text.lower().partition(":")
    if name not in CHIPS:
        raise ConfigError(unknown(f"chip in --topology={text}", name, CHIPS))
    chip, shape = CHIPS[name], tuple(map(int, sizes.split("x"))) if re.fullmatch(r"\d+(x\d+)*", sizes) else ()
    if len(shape) != chip.axes or 0 in shape:
        example = "x".join(("4", "4", "4")[: chip.axes]) if chip.is_tpu else "8"
        raise ConfigError(f"--topology={text} must be {name} with {chip.axes} size(s), such as {name}:{example}")
    if chip.is_tpu and math.prod(shape) > chip.most:
        raise ConfigError(f"--topology={text} has {math.prod(shape)} chips, and a pod of {name} has {chip.most}")
    return Slice(name, shape)
