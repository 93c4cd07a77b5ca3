"""A run planned before a chip is rented: its step compiled ahead of time for a slice, and what that needs and takes.

Memory and traffic are those of the compiled program; FLOPs, and bytes that a device reads and writes, are by formula
(`jaxstab.train.estimate`), since a compiler counts the body of a loop once.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab import scale
from jaxstab.config import ConfigError
from jaxstab.model.transformer import REMAT_POLICIES
from jaxstab.optimize import Hypers
from jaxstab.scale.chips import Slice
from jaxstab.scale.collectives import collectives
from jaxstab.scale.roofline import Seconds, seconds
from jaxstab.table import Effective, Table
from jaxstab.train import estimate
from jaxstab.train.config import Config
from jaxstab.train.program import Program, build

NO_LIBTPU = "no compiler for TPUs here, which `pip install -e .[tpu]` brings"
REFUSED = "out of memory"
GATHERS = ("all-gather", "collective-permute")  # the latter bring shards around a ring, beside the products with them
REMATS = ("none", *REMAT_POLICIES)
MOST_TENSOR = 8  # devices over which a search splits matrices by heads, and a sequence


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step needs and takes on a slice.

    Attributes:
      config: of the run; its mesh has no -1.
      slice_: the chips.
      compiler: whose figures they are: `tpu`, `cpu`, or `formula`; with REFUSED behind it, what it refuses.
      memory: bytes of one device, by what holds them.
      sent: collectives by kind and dtype, as `scale.collectives` tells them; by `estimate.sent` in a formula's.
      by_formula: bytes that a device sends, as `estimate.sent` has them.
      flops: of a step, by convention.
      seconds: of one device's work.
    """

    config: Config
    slice_: Slice
    compiler: str
    memory: dict[str, float]
    sent: dict[str, dict[str, float]]
    by_formula: dict[str, float]
    flops: dict[str, float]
    seconds: Seconds

    @property
    def needed(self) -> float:
        """Bytes of one device."""
        return sum(self.memory.values())

    @property
    def capacity(self) -> float:
        """Bytes that one device has."""
        return self.slice_.chip.memory / self.slice_.chip.devices

    @property
    def fits(self) -> bool:
        return self.needed <= self.capacity and not self.refused

    @property
    def refused(self) -> bool:
        """Whether the compiler found too little memory, of which it keeps a part for itself."""
        return self.compiler.endswith(REFUSED)

    @property
    def sums_weights(self) -> bool:
        """Whether the compiled program has sums where it could gather weights, which sends them twice."""
        gathered = sum(total["sent"] for kind, total in self.sent.items() if kind.startswith(GATHERS))
        return bool(self.sent) and self.compiler != "formula" and gathered < 0.5 * self.by_formula["weights"]

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.config.train.batch_size * self.config.data.length

    @property
    def mfu(self) -> float:
        """The most that model FLOPs utilization, by the convention `full`, can come to."""
        return self.flops["full"] / (self.seconds.least * self.slice_.chips * self.slice_.chip.peak)

    @property
    def days(self) -> float:
        """Of all steps, at the least time of each."""
        return self.config.total_steps * self.seconds.least / 86400

    @property
    def chip_hours(self) -> float:
        return 24 * self.days * self.slice_.chips

    def as_json(self) -> dict[str, Any]:
        train, model = self.config.train, self.config.model
        return {
            "topology": str(self.slice_),
            "compiler": self.compiler,
            "method": self.config.reparam.method,
            "mesh": dataclasses.asdict(self.config.mesh),
            "remat": model.remat,
            "accumulation": train.accumulation,
            "batch_size": train.batch_size,
            "memory": self.memory,
            "needed": self.needed,
            "capacity": self.capacity,
            "fits": self.fits,
            "sent": self.sent,
            "sent_by_formula": self.by_formula,
            "flops": self.flops,
            "seconds": self.seconds._asdict(),
            "mfu": self.mfu,
            "tokens_per_second": self.tokens / self.seconds.least,
            "days": self.days,
            "chip_hours": self.chip_hours,
        }


def on_mesh_of(config: Config, slice_: Slice) -> Config:
    """The config with the mesh that it has on a slice, where -1 takes what is left."""
    given = tuple(getattr(config.mesh, axis) for axis in scale.AXES)
    sizes = scale.mesh_sizes(config.mesh, slice_.devices)
    if math.prod(sizes) != slice_.devices:
        raise ConfigError(
            f"mesh={given} is {math.prod(sizes)} devices, and {slice_} has {slice_.devices}: make one -1, or all of "
            "them that many together"
        )
    return dataclasses.replace(config, mesh=scale.MeshConfig(*sizes))


def devices_of(slice_: Slice) -> tuple[list[Any], str]:
    """Devices to compile for, and whose they are: `tpu`, of a slice that isn't here, or as many virtual ones, `cpu`.

    The latter are for GPUs, and for TPUs where libtpu isn't installed.

    Raises:
      ConfigError: no TPU has this topology, or JAX has started with fewer virtual devices.
    """
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}  # libtpu looks for no machine
    if slice_.chip.is_tpu and has_libtpu():
        from jax.experimental import topologies

        try:
            whole = topologies.get_topology_desc(
                platform="tpu", topology_name=str(in_hosts(slice_)), chip_config_name=slice_.chip.cores
            )
            return list(whole.devices)[: slice_.devices], "tpu"
        except Exception as error:  # of whatever kind the plugin raises
            line = " ".join(str(error).split())[:200]
            raise ConfigError(f"--topology={slice_} is no slice that libtpu knows: {line}") from error
    return virtual_devices(slice_.devices), "cpu"


def in_hosts(slice_: Slice) -> Slice:
    """The slice, or that of the whole host that it is a part of: libtpu knows no less than 2x2 chips."""
    return Slice(slice_.name, (*(max(2, size) for size in slice_.shape[:2]), *slice_.shape[2:]))


def has_libtpu() -> bool:
    """Whether the compiler for TPUs is installed."""
    try:
        import libtpu
    except ImportError:
        return False
    return hasattr(libtpu, "get_library_path")


def virtual_devices(count: int) -> list[Any]:
    """That many of this machine's CPU's virtual devices; JAX has to start with them."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has started
        if len(jax.devices("cpu")) < count:
            have = len(jax.devices("cpu"))
            raise ConfigError(f"{count} virtual devices are needed, and JAX has started with {have}") from None
    return jax.devices("cpu")[:count]


def lowered(program: Program) -> jax.stages.Lowered:
    """The step of a program, traced for its mesh; what its arguments would be has shapes alone."""
    config = program.setup.config
    tokens = jax.ShapeDtypeStruct((config.train.batch_size, config.data.length + 1), jnp.int32)
    scalar: Any = jax.ShapeDtypeStruct((), jnp.float32)
    position: Any = jax.ShapeDtypeStruct((), jnp.int32)
    step: Any = program.step
    return step.lower(program.abstract_state, tokens, Hypers(scalar, scalar, scalar, position))


def plan(config: Config, slice_: Slice, devices: list[Any], compiler: str, end: int | None = None) -> Plan:
    """The step of a run, compiled for these devices and never run.

    Args:
      config: its vocabulary is resolved, and its mesh has no -1.
      slice_: the chips whose figures count.
      devices, compiler: as `devices_of` gives them.
      end: the tokenizer's end-of-document id, needed by `model.mask_documents`.
    """
    program = build(config, end, mesh=scale.make_mesh(config.mesh, devices))
    activations = estimate.memory(config, program.setup.mesh.shape, estimate.footprint(program))["activations"]
    state = estimate.state_bytes(program)
    try:
        compiled = lowered(program).compile()
    except jax.errors.JaxRuntimeError as error:
        message = " ".join(str(error).split())
        temporaries = _refused(message, sum(state.values()))
        if temporaries is None:
            raise ConfigError(f"the compiler refuses the step for {slice_}: {message[:300]}") from error
        memory = _parts(state, activations, temporaries, 0)
        return _of(config, slice_, program.setup.table, f"{compiler}, {REFUSED}", memory, {})
    sizes: Any = compiled.memory_analysis()
    state["other state"] = sizes.argument_size_in_bytes - state["parameters"] - state["optimizer"]
    new = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    memory = _parts(state, activations, sizes.temp_size_in_bytes + new, sizes.generated_code_size_in_bytes)
    return _of(config, slice_, program.setup.table, compiler, memory, collectives(compiled.as_text() or ""))


def _refused(message: str, state: float) -> float | None:
    """Bytes besides the state of a program for which libtpu finds too little memory, which it tells in one of two ways;
    None where it says something else."""
    whole = re.search(r"Used ([\d.]+)([KMGT]) of \S+ hbm", message)
    besides = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", message)
    told = whole or besides
    if not told:
        return None
    return float(told[1]) * 2.0 ** (10 * (1 + "KMGT".index(told[2]))) - (state if whole else 0)


def _parts(state: dict[str, float], activations: float, temporaries: float, code: float) -> dict[str, float]:
    """Memory by what holds it. The compiler has temporaries in one sum, of which activations are a part by formula."""
    activations = min(activations, temporaries)
    return {**state, "activations": activations, "temporaries": temporaries - activations, "program": code}


def estimated(config: Config, slice_: Slice, held: estimate.Footprint) -> Plan:
    """A plan by formula alone."""
    sizes = _sizes(config)
    sent = {name: {"sent": size} for name, size in estimate.sent(config, sizes, held.weights).items() if size}
    return _of(config, slice_, held.weights, "formula", estimate.memory(config, sizes, held), sent)


def _sizes(config: Config) -> dict[str, int]:
    return dataclasses.asdict(config.mesh)


def _of(
    config: Config,
    slice_: Slice,
    table: Table[Effective],
    compiler: str,
    memory: dict[str, float],
    sent: dict[str, Any],
) -> Plan:
    work, by_formula = estimate.work(config, _sizes(config), table), estimate.sent(config, _sizes(config), table)
    if sent:
        work = work._replace(sent=sum(total["sent"] for total in sent.values()))
    flops = estimate.step_flops(config, table)
    return Plan(config, slice_, compiler, memory, sent, by_formula, flops, seconds(work, slice_))


def candidates(config: Config, slice_: Slice) -> Iterator[Config]:
    """Configs of the same training: meshes, rematerialization and micro-batches in powers of two.

    `tensor` and `sequence` have at most MOST_TENSOR devices, `tensor` as many as divide the heads.
    """
    for mesh in _meshes(config, slice_.devices):
        for accumulation in _powers(config.train.batch_size):
            if config.train.batch_size % (accumulation * mesh.replica * mesh.fsdp) == 0:
                train = dataclasses.replace(config.train, accumulation=accumulation)
                for remat in REMATS:
                    yield dataclasses.replace(_with_remat(config, remat), mesh=mesh, train=train)


def _with_remat(config: Config, remat: str) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))


def _powers(most: int) -> Iterator[int]:
    return (2**exponent for exponent in range(most.bit_length()))


def _meshes(config: Config, devices: int) -> Iterator[scale.MeshConfig]:
    heads = math.gcd(config.model.heads, config.model.kv_heads or config.model.heads)
    small = [size for size in _powers(MOST_TENSOR) if devices % size == 0]
    for tensor in (size for size in small if heads % size == 0):
        for sequence in (size for size in small if config.data.length % size == 0):
            data = devices // (tensor * sequence)
            if tensor * sequence * data == devices:
                for replica in (size for size in _powers(data) if data % size == 0):
                    yield scale.MeshConfig(replica, data // replica, tensor, sequence)


def search(
    config: Config,
    slice_: Slice,
    devices: list[Any],
    compiler: str,
    end: int | None,
    compiled: int,
    shown: Callable[[list[Any]], Iterable[Any]],
) -> list[Plan]:
    """Plans of the `candidates` that fit, the fastest first.

    All are judged by formula; of those that fit, the best are compiled.

    Args:
      config, slice_, devices, compiler, end: as of `plan`.
      compiled: how many are compiled.
      shown: goes through a list and shows how far it is.
    """
    mesh = scale.make_mesh(scale.MeshConfig(), devices)
    held = {remat: estimate.footprint(build(_with_remat(config, remat), end, mesh)) for remat in REMATS}
    by_formula = [estimated(each, slice_, held[each.model.remat]) for each in candidates(config, slice_)]
    best = sorted((each for each in by_formula if each.fits), key=lambda each: each.seconds.least)[:compiled]
    plans = [plan(each.config, slice_, devices, compiler, end) for each in shown(best)]
    return sorted((each for each in plans if each.fits), key=lambda each: each.seconds.least)
