"""What accelerators can do at best, for model FLOPs utilization (MFU)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
