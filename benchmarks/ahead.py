"""The training step compiled for chips that aren't here: memory, products and kernels of each chip's program.

    python benchmarks/ahead.py tpu   # needs `pip install -e .[tpu]`: one v5e, four v5p, four v6e; about ten minutes
    python benchmarks/ahead.py cuda  # needs `pip install -e .[cuda]`: one H100, eight H100; about two minutes
    python benchmarks/ahead.py 1.3b  # as `tpu`: peak memory at 1.3B on one v5p, over the sum that must be there

For the first two the model is the paper's at 130M, in bfloat16, on sequences of 2,048 tokens, 8 per chip, split by
FSDP, with WeSaR; once with XLA's attention, once in chunks, once with the fused kernel of the platform. Prints one JSON
object per line. The figures are in docs/results/speed.md.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import sys
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}

import jax
from jax.experimental import topologies

from jaxstab import scale
from jaxstab.model.transformer import read_table
from jaxstab.scale.collectives import collectives
from jaxstab.table import count
from jaxstab.train.config import Config, default_config, resolve
from jaxstab.train.plan import lowered
from jaxstab.train.program import build

# What XLA has to know of an H100 SXM, as JAX tells of one that is there: `get_topology_for_devices(...).target_config`.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# {target: (its platform's fused attention, chips, what `get_topology_desc` takes)}
TARGETS: dict[str, dict[str, tuple[str, int, dict[str, str]]]] = {
    "tpu": {
        "v5e-1": ("splash", 1, {"topology_name": "v5e:2x2"}),
        "v5p-4": ("splash", 4, {"topology_name": "v5p:2x2x1"}),
        "v6e-4": ("splash", 4, {"topology_name": "v6e:2x2"}),
    },
    "cuda": {
        "h100-1": ("cudnn", 1, {"topology_name": "h100", "target_config": H100, "topology": "1x1x1"}),
        "h100-8": ("cudnn", 8, {"topology_name": "h100", "target_config": H100, "topology": "1x1x8"}),
    },
}
ROWS_PER_CHIP = 8
GIB = 2**30


def configured(attention: str, chips: int, **model: Any) -> Config:
    """The architecture of the paper at 130M, split over the chips, with some keys of the model changed."""
    values = default_config()
    values.model.update({"vocabulary": 32000, "dtype": "bfloat16", "attention": attention, **model})
    values.data.length = values.model.max_length
    values.train.batch_size = ROWS_PER_CHIP * chips
    values.reparam.method = "wesar"
    values.mesh.fsdp = chips
    return resolve(values)


def required(config: Config, parameters: int) -> int:
    """Bytes that a step needs whatever the program: parameters, moments and gradients in float32, a copy in bf16, what
    goes from layer to layer, and one block's activations (norms' outputs, q, k, v, attention's output, the shortcut
    between the branches, the MLP before and after its activation), in bf16.
    """
    model, tokens = config.model, config.train.batch_size * config.data.length
    block = 4 * model.width + 3 * model.heads * model.head_dim + 2 * (model.mlp_width or 4 * model.width)
    return (4 + 8 + 4 + 2) * parameters + 2 * tokens * (model.layers * model.width + block)


def peaks() -> None:
    """Peak memory over `required` at 1.3B, 8 sequences of 2,048 tokens, on one v5p."""
    fused, _, options = TARGETS["tpu"]["v5p-4"]
    devices = list(topologies.get_topology_desc(platform="tpu", **options).devices)
    for method in ("identity", "wesar", "sigma_reparam", "weight_norm"):
        config = configured(fused, 1, width=2048, layers=24, heads=16)
        config = dataclasses.replace(config, reparam=dataclasses.replace(config.reparam, method=method))
        memory = compiled(config, devices).memory_analysis()
        parameters = count(read_table(config.model))
        peak, least = memory.argument_size_in_bytes + memory.temp_size_in_bytes, required(config, parameters)
        row = {"method": method, "parameters": parameters, "peak_GiB": peak / GIB, "required_GiB": least / GIB}
        print(json.dumps(row | {"ratio": round(peak / least, 3)}), flush=True)


def compiled(config: Config, devices: list[Any], end: int | None = None) -> jax.stages.Compiled:
    """The training step of a config on the first of these devices; `end` is needed to mask documents."""
    return lowered(build(config, end, mesh=scale.make_mesh(config.mesh, devices))).compile()


def products(text: str) -> dict[str, collections.Counter[str]]:
    """{"bf16 x bf16 -> f32": {what of: how many}} of the matrix products in a compiled program's text.

    Those within a kernel don't count, nor how often loops turn, which a TPU's program doesn't say: of all layers, and
    of all chunks of the loss, those of one count.
    """
    dtypes = dict(re.findall(r"%([\w.\-]+) = (\w+)\[", text))
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    pattern = r' = (\w+)\[\S* (?:convolution|dot)\(%([\w.\-]+), %([\w.\-]+)\).*?op_name="([^"]*)"'
    for result, left, right, name in re.findall(pattern, text):
        what = "/".join(name.split("/")[-3:-1])
        part = " (recomputed)" if "rematted" in name else " (backward)" if "transpose(" in name else ""
        found[f"{dtypes[left]} x {dtypes[right]} -> {result}"][what + part] += 1
    return found


def kernels(text: str) -> collections.Counter[str]:
    """The kernels of fused attention in a compiled program's text, by name: Pallas's and cuDNN's."""
    pallas = re.findall(r'%([a-z_]+)\S* = .* custom-call\(.*custom_call_target="tpu_custom_call"', text)
    return collections.Counter(pallas + re.findall(r'custom_call_target="(__cudnn\$fmha\w*)"', text))


def report(program: jax.stages.Compiled) -> dict[str, Any]:
    memory, text = program.memory_analysis(), program.as_text()
    multiplied = products(text)
    accessed = (program.cost_analysis() or {}).get("bytes accessed")  # a loop's body counts once; a GPU's says nothing
    return {
        "arguments_GiB": round(memory.argument_size_in_bytes / GIB, 3),
        "temporaries_GiB": round(memory.temp_size_in_bytes / GIB, 3),
        "outputs_GiB": round((memory.output_size_in_bytes - memory.alias_size_in_bytes) / GIB, 3),
        "accessed_GiB": accessed and round(accessed / GIB, 2),
        "products": {kind: names.total() for kind, names in multiplied.items()},
        "f32_operands": {kind: names for kind, names in multiplied.items() if "f32 x" in kind or "x f32" in kind},
        "kernels": kernels(text),
        "collectives": collectives(text),  # a loop's count once on a TPU, too
    }


def main(platform: str) -> None:
    for target, (fused, chips, options) in TARGETS[platform].items():
        try:
            devices = list(topologies.get_topology_desc(platform=platform, **options).devices)
        except Exception as error:  # of whatever kind the plugin raises
            line = " ".join(str(error).split())[:200]
            sys.exit(f"no compiler for {target} here, which `pip install -e .[{platform}]` brings: {line}")
        for attention in ("xla", "chunked", fused):
            measured = report(compiled(configured(attention, chips), devices))
            print(json.dumps({"target": target, "attention": attention, **measured}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] not in (["tpu"], ["cuda"], ["1.3b"]):
        sys.exit("python benchmarks/ahead.py tpu|cuda|1.3b")
    peaks() if sys.argv[1] == "1.3b" else main(sys.argv[1])
