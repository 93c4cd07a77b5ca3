"""What a run's programs need, compiled and never run: bytes of temporaries, and collectives per step.

    python benchmarks/memory.py temporaries  # at 130M: step, evaluation, full measurements; accumulation 1 and 64
    python benchmarks/memory.py parameters   # per parameter, beside the state, on a batch of next to nothing
    python benchmarks/memory.py collectives  # by kind and bytes, on eight virtual devices

Sizes are those that XLA's CPU backend gives (`memory_analysis`, the optimized program's text). Prints one JSON object
per line. The figures are in docs/results/memory.md.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp

from jaxstab.scale.collectives import collectives
from jaxstab.table import count
from jaxstab.train.config import Config, default_config, resolve
from jaxstab.train.plan import lowered
from jaxstab.train.program import Program, build
from jaxstab.train.step_io import hypers

MESHES = {
    "replica": {"replica": 8},
    "fsdp": {"fsdp": 8},
    "fsdp x tensor": {"fsdp": 4, "tensor": 2},
}


def configured(**changes: object) -> Config:
    """The architecture of the paper at 130M and its rapid setting, with some keys changed."""
    values = default_config()
    values.model.vocabulary = 32000
    values.model.max_length = values.data.length = 2048
    values.train.batch_size = 512
    for key, value in changes.items():
        *path, name = key.split("__")
        section = values
        for part in path:
            section = section[part]
        section[name] = value
    return resolve(values)


def compiled(program: Program, name: str) -> jax.stages.Compiled:
    """The step, the evaluation of a batch, or the full measurements."""
    config = program.setup.config
    tokens = jax.ShapeDtypeStruct((config.train.batch_size, config.data.length + 1), jnp.int32)
    if name == "step":
        return lowered(program).compile()
    if name == "measure":
        return program.measure.lower(program.abstract_state, tokens, hypers(program)).compile()
    valid = jax.ShapeDtypeStruct(tokens.shape[:1], bool)
    return program.evaluate.lower(jax.eval_shape(program.merge, program.abstract_state), tokens, valid).compile()


def temporaries() -> None:
    for accumulation in (1, 64):
        program = build(configured(train__accumulation=accumulation, train__batch_size=8 * accumulation))
        for name in ("step", "evaluate", "measure"):
            size = compiled(program, name).memory_analysis().temp_size_in_bytes
            print(
                json.dumps({"program": name, "accumulation": accumulation, "GiB": round(size / 2**30, 2)}), flush=True
            )


def parameters() -> None:
    """One short sequence in a batch, so that what is there once per parameter dominates."""
    for method in ("identity", "wesar", "weight_norm", "sigma_reparam"):
        for measured in ("off", "light"):
            program = build(
                configured(
                    reparam__method=method,
                    stability__measure=measured,
                    data__length=8,
                    train__batch_size=1,
                    train__loss_chunk=8,
                    model__vocabulary=1024,
                )
            )
            size = compiled(program, "step").memory_analysis().temp_size_in_bytes
            per_parameter = size / count(program.setup.stored_table)
            row = {"method": method, "measure": measured, "bytes_per_parameter": round(per_parameter, 2)}
            print(json.dumps(row), flush=True)


def on_eight_devices(mesh: dict[str, int], **changes: object) -> Program:
    sizes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    return build(configured(**{"train__batch_size": 64, "train__accumulation": 4, **sizes, **changes}))


def of_meshes() -> None:
    for name, mesh in MESHES.items():
        for dtype in ("float32", "bfloat16"):
            text = compiled(on_eight_devices(mesh, model__dtype=dtype, model__layers=2), "step").as_text()
            print(json.dumps({"mesh": name, "dtype": dtype, **collectives(text)}), flush=True)


if __name__ == "__main__":
    {"temporaries": temporaries, "parameters": parameters, "collectives": of_meshes}[sys.argv[1]]()
