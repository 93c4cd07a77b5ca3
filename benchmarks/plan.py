"""The models of Nishida et al. 2024 planned for slices of TPUs that aren't here, which needs `pip install -e .[tpu]`.

    python benchmarks/plan.py smallest        # each size on the smallest slices that fit, and on those that don't
    python benchmarks/plan.py methods         # what every reparameterization sends and holds, 1.3B on 16 v5e
    python benchmarks/plan.py pod             # 13B at 4M tokens a step on 256 chips
    python benchmarks/plan.py pod 2           # the third case of these alone
    python benchmarks/plan.py scale           # by formula, 13B at 4M tokens a step on 64 to 1,024 v5p
    python benchmarks/plan.py fits            # memory by formula, from one chip to 64
    python benchmarks/plan.py formula         # the cases of `smallest` and `pod` by formula alone

Prints one JSON object per line; a case of 13B takes two minutes and more. The figures are in docs/results/plan.md,
those of `scale` in docs/scale.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from configs.wesar import SIZES, get_config
from jaxstab.scale import MeshConfig
from jaxstab.scale.chips import read_slice
from jaxstab.scale.roofline import seconds
from jaxstab.train import estimate
from jaxstab.train.config import Config, resolve
from jaxstab.train.plan import devices_of, estimated, on_mesh_of, plan
from jaxstab.train.program import build
from jaxstab.train.setup import effective_table

# Size and setting, slice, micro-batches; with these a device has that many sequences at once.
SMALLEST = [
    ("130m", "v5e:1x1", 64),
    ("130m", "v6e:1x1", 64),
    ("130m", "v5p:2x2x1", 16),
    ("1.3b", "v5e:2x2", 128),
    ("1.3b", "v5e:2x4", 64),
    ("1.3b", "v6e:1x1", 512),
    ("1.3b", "v6e:2x2", 64),
    ("1.3b", "v5p:2x2x1", 16),
    ("13b", "v5e:4x4", 32),
    ("13b", "v5e:4x8", 16),
    ("13b", "v6e:2x4", 64),
    ("13b", "v6e:4x4", 32),
    ("13b", "v5p:2x2x1", 128),
    ("13b", "v5p:2x2x2", 16),
]
FORMULA = ("topology", "mesh", "accumulation", "memory", "needed", "sent")
METHODS = ("identity", "wesar", "weight_norm", "sigma_reparam")
# Slice, replicas, micro-batches.
POD = [("v5p:4x8x8", 1, 1), ("v5p:4x8x8", 4, 1), ("v6e:16x16", 4, 1), ("v5e:16x16", 4, 2)]


def configured(argument: str, accumulation: int, method: str = "", replica: int = 1) -> Config:
    values = get_config(argument)
    values.train.accumulation, values.mesh.replica = accumulation, replica
    values.reparam.method = method or values.reparam.method
    return resolve(values)


def cases(name: str) -> list[tuple[str, Config]]:
    if name == "smallest":
        return [(topology, configured(f"size={size}", count)) for size, topology, count in SMALLEST]
    if name == "methods":
        return [("v5e:4x4", configured("size=1.3b", 8, method)) for method in METHODS]
    return [(slice_, configured("size=13b,setting=stable", count, replica=copies)) for slice_, copies, count in POD]


def by_formula() -> None:
    """Traffic and times of each kind as the slice grows, in one FSDP group and in replicas of 64."""
    table = effective_table(configured("size=13b", 1))
    slices = ("v5p:4x4x4", "v5p:4x4x8", "v5p:4x8x8", "v5p:8x8x8", "v5p:8x8x16")
    for topology in slices:
        slice_ = read_slice(topology)
        for replica in sorted({1, slice_.chips // 64}):
            config = on_mesh_of(configured("size=13b,setting=stable", 1, replica=replica), slice_)
            sizes = dataclasses.asdict(config.mesh)
            work = estimate.work(config, sizes, table)
            row = {"chips": slice_.chips, **sizes, "sent": estimate.sent(config, sizes, table)}
            print(json.dumps(row | {"seconds": seconds(work, slice_)._asdict()}), flush=True)


FITS = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4"),
}


def fits() -> None:
    """Memory of a device by formula, one sequence at a time on each, as slices grow."""
    for size in SIZES:
        config = configured(f"size={size},setting=stable", 1)
        config = dataclasses.replace(config, mesh=MeshConfig())
        held = estimate.footprint(build(config))
        for slice_ in (read_slice(f"{name}:{shape}") for name, shapes in FITS.items() for shape in shapes):
            train = dataclasses.replace(config.train, accumulation=config.train.batch_size // slice_.devices)
            split = dataclasses.replace(config, mesh=MeshConfig(fsdp=slice_.devices), train=train)
            parts = estimate.memory(split, dataclasses.asdict(split.mesh), held)
            in_gib = {name: round(part / 2**30, 2) for name, part in parts.items()}
            row = {"size": size, "slice": str(slice_), "memory_GiB": in_gib}
            print(json.dumps(row | {"needed_GiB": round(sum(parts.values()) / 2**30, 3)}), flush=True)


def formulas() -> None:
    """What stands beside the compiled figures."""
    for name in ("smallest", "pod"):
        for topology, config in cases(name):
            slice_ = read_slice(topology)
            config = on_mesh_of(config, slice_)
            held = estimate.footprint(build(dataclasses.replace(config, mesh=MeshConfig())))
            planned = estimated(config, slice_, held).as_json()
            row = {"case": name, "width": config.model.width, **{key: planned[key] for key in FORMULA}}
            print(json.dumps(row), flush=True)


def main(name: str, number: str = "") -> None:
    chosen = cases(name)
    for topology, config in [chosen[int(number)]] if number else chosen:
        start = time.monotonic()
        slice_ = read_slice(topology)
        planned = plan(on_mesh_of(config, slice_), slice_, *devices_of(slice_))
        model = {key: dataclasses.asdict(config.model)[key] for key in ("width", "layers")}
        took = {"compile_seconds": round(time.monotonic() - start)}
        print(json.dumps({"case": name, **model, **planned.as_json(), **took}), flush=True)


OTHERS = {"scale": by_formula, "fits": fits, "formula": formulas}

if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1] not in ("smallest", "methods", "pod", *OTHERS):
        sys.exit("python benchmarks/plan.py smallest|methods|pod [NUMBER], or scale|fits|formula")
    jax.config.update("jax_platforms", "cpu")
    OTHERS.get(sys.argv[1], functools.partial(main, *sys.argv[1:]))()
