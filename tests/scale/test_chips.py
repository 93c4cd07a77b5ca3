"""The peaks of chips: a device is one TensorCore or a whole chip, and one unknown device makes the sum unknown."""

from types import SimpleNamespace

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxstab.scale.chips import CHIPS, TENSOR_CORES, TPU_CORES, peak_flops, read_slice
from jaxstab.scale.roofline import Work, seconds


def device(kind, **attributes):
    return SimpleNamespace(device_kind=kind, **attributes)


@pytest.mark.parametrize(
    ("devices", "peak"),
    [
        ([device("NVIDIA H100 80GB HBM3")] * 8, 8 * 989.4e12),
        ([device("NVIDIA A100-SXM4-40GB")], 312e12),
        ([device("TPU v3", num_cores=1)] * 8, 4 * 123e12),
        ([device("TPU v4", num_cores=2)] * 4, 4 * 275e12),
        ([device("TPU v5", num_cores=2)] * 4, 4 * 459e12),
        ([device("TPU v5 lite", num_cores=1)] * 4, 4 * 197e12),
        ([device("TPU7x", num_cores=1)] * 8, 4 * 2307e12),
        ([device("Tesla V100-SXM2-16GB")], None),
        ([device("TPU v4", num_cores=2), device("TPU v99", num_cores=2)], None),
    ],
)
def test_peaks_are_those_of_the_chips(devices, peak):
    assert peak_flops(devices) == peak


def test_a_cpu_has_none():
    assert peak_flops(jax.devices()) is None


VERSIONS = {"TPU v2": "V2", "TPU v4": "V4", "TPU v5": "V5P", "TPU v5 lite": "V5E", "TPU v6 lite": "V6E", "TPU7x": "7X"}


@pytest.mark.parametrize("kind", VERSIONS)
def test_a_tensor_core_does_what_jax_s_own_kernels_assume(kind):
    """v3 is left out: JAX has 140e12, and Google's page of it 123e12."""
    version = pltpu.ChipVersion[f"TPU_{VERSIONS[kind]}"]
    assumed = pltpu.get_tpu_info_for_chip(version, 1).bf16_ops_per_second
    assert TPU_CORES[kind] == pytest.approx(assumed, rel=0.003)


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.is_tpu])
def test_a_slice_s_chips_are_those_of_jax_s_own_kernels(name):
    """JAX's table has per-core figures of what its kernels run on."""
    chip = CHIPS[name]
    cores = TENSOR_CORES.get(chip.kind, 1)
    info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion[f"TPU_{name.removeprefix('tpu').upper()}"], 1)
    assert chip.peak == pytest.approx(cores * info.bf16_ops_per_second, rel=0.003)
    if name != "v5p":  # of which JAX has 2,460 GB/s, and Google's page 2,765
        assert chip.bandwidth == pytest.approx(cores * info.mem_bw_bytes_per_second, rel=0.03)
    assert chip.memory == pytest.approx(cores * info.hbm_capacity_bytes, rel=0.08)


def test_a_gpu_s_peak_is_that_of_its_device():
    for chip in (chip for chip in CHIPS.values() if not chip.is_tpu):
        assert chip.peak == peak_flops([device(chip.kind)]) and chip.network > 0


def test_times_are_those_of_the_slowest_part():
    """A hundred GFLOPs, GB and MB by hand; the GPUs of two hosts send over their network."""
    work = Work(flops=989.4e12, accessed=3.35e12, sent=450e9)
    assert seconds(work, read_slice("h100:8")) == pytest.approx((1, 1, 1))
    assert seconds(work, read_slice("h100:16")).interconnect == pytest.approx(9)
    assert seconds(work, read_slice("h100:16")).bound == "interconnect"
    halves = seconds(Work(2307e12 / 2, 7380e9 / 2, 600e9 / 2), read_slice("tpu7x:2x2x1"))
    assert halves == pytest.approx((1, 1, 1)) and halves.least == 1 and halves.most == 3
