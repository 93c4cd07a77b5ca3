"""Where a TPU's compiler gathers what FSDP has split, and where it sums in its place.

    python benchmarks/gathers.py > docs/results/plan/gathers.jsonl   # needs `pip install -e .[tpu]`; five minutes

One matrix `[width, 4 width]`, float32, whose rows are split over `fsdp`, multiplied with activations in bfloat16 as an
MLP's two are, and its gradient: compiled for slices and splits of them, and never run. Prints one JSON object per case,
with what a device sends. The figures are in docs/results/plan.md.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxstab import scale
from jaxstab.scale.chips import read_slice
from jaxstab.scale.collectives import collectives
from jaxstab.train.plan import devices_of

LENGTH = 2048
# Slice, devices along fsdp (the rest are replicas), width.
CASES = [
    *(("v5p:4x8x8", 256, width) for width in (4096, 5120, 6144, 8192, 10240, 20480)),
    *(("v5p:4x8x8", fsdp, 5120) for fsdp in (64, 128)),
    ("v5p:4x8x8", 64, 1280),
    *(("v5p:8x8x8", fsdp, 5120) for fsdp in (128, 256, 512)),
    *(("v5p:4x4x4", fsdp, 5120) for fsdp in (32, 64)),
    *(("v5p:4x4x8", fsdp, 5120) for fsdp in (64, 128)),
    ("v5p:4x4x12", 192, 6144),
    ("v5p:4x4x16", 256, 5120),
    ("v5p:2x4x4", 32, 5120),
    ("v5p:2x2x4", 16, 5120),
    ("v5p:2x2x2", 8, 5120),
    *(("v4:4x8x8", fsdp, 5120) for fsdp in (128, 256)),
    *(("tpu7x:4x4x4", fsdp, 5120) for fsdp in (64, 128)),
    *(("v6e:16x16", fsdp, 5120) for fsdp in (128, 256)),
    ("v6e:8x8", 64, 5120),
    ("v5e:16x16", 256, 5120),
]


def compiled(topology: str, fsdp: int, width: int) -> str:
    """The program's text."""
    devices, _ = devices_of(read_slice(topology))
    mesh = scale.make_mesh(scale.MeshConfig(replica=-1, fsdp=fsdp), devices)
    rows, batch, whole = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp", None), (("replica", "fsdp"), None, None), ())
    )

    def loss(weight: jax.Array, inputs: jax.Array) -> jax.Array:
        cast = weight.astype(jnp.bfloat16)
        hidden = jax.lax.with_sharding_constraint(inputs @ cast, batch)
        outputs = jax.lax.with_sharding_constraint(jax.nn.relu(hidden) @ cast.T, batch)
        return (outputs.astype(jnp.float32) ** 2).sum()

    gradient = jax.jit(jax.value_and_grad(loss), in_shardings=(rows, batch), out_shardings=(whole, rows))
    weight = jax.ShapeDtypeStruct((width, 4 * width), jnp.float32)
    inputs = jax.ShapeDtypeStruct((len(devices), LENGTH, width), jnp.bfloat16)
    return gradient.lower(weight, inputs).compile().as_text() or ""


if __name__ == "__main__":
    for topology, fsdp, width in CASES:
        sent = {kind: total["sent"] for kind, total in collectives(compiled(topology, fsdp, width)).items()}
        row = {"topology": topology, "fsdp": fsdp, "width": width, "rows": width / fsdp}
        print(json.dumps({**row, "bytes": 2 * width * 4 * width, "sent": sent}), flush=True)
