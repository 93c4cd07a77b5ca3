"""The peaks of chips: a device is one TensorCore or a whole chip, and one unknown device makes the sum unknown."""

from types import SimpleNamespace

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxstab.scale.chips import TPU_CORES, peak_flops


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
