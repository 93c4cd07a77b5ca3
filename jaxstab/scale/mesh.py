"""Device meshes, and the shardings that follow from the table's logical axes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxstab.config import ConfigError, Options, Range, option
from jaxstab.table import Row, Table

AXES = ("replica", "fsdp", "tensor", "sequence")

# Logical axes to mesh axes. Parameters are split over `fsdp` along the model width and over `tensor` along the rest.
RULES = (
    ("batch", ("replica", "fsdp")),
    ("length", "sequence"),
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("positions", None),
    ("layers", None),
)
# The same where a function is mapped over replicas.
RULES_WITHIN_REPLICA = (("batch", "fsdp"), *RULES[1:])


@dataclasses.dataclass(frozen=True)
class MeshConfig(Options):
    """Devices along each axis of the mesh; at most one may be -1, which takes what is left."""

    replica: int = option(1, "Data parallelism with a copy of everything on each.", Range(-1))
    fsdp: int = option(1, "Data parallelism with parameters and optimizer state split.", Range(-1))
    tensor: int = option(1, "Split of heads, MLP and vocabulary.", Range(-1))
    sequence: int = option(1, "Split of the sequence.", Range(-1))

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [getattr(self, axis) for axis in AXES]
        if sizes.count(-1) > 1 or 0 in sizes:
            raise ConfigError(f"mesh={tuple(sizes)} must be positive numbers, at most one of them -1")


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """The mesh (replica, fsdp, tensor, sequence) over `devices`, by default the first ones that it needs.

    Raises:
      ConfigError: the sizes don't fit the number of devices, or the slices that these are in.
    """
    devices = jax.devices() if devices is None else devices
    given, sizes = tuple(getattr(config, axis) for axis in AXES), mesh_sizes(config, len(devices))
    if -1 in given and math.prod(sizes) != len(devices):
        raise ConfigError(f"mesh={given} doesn't divide the {len(devices)} devices here; make it divide them")
    if math.prod(sizes) > len(devices):
        raise ConfigError(f"mesh={given} needs {math.prod(sizes)} devices, and there are {len(devices)}")
    used = devices[: math.prod(sizes)]
    idle = {device.process_index for device in devices} - {device.process_index for device in used}
    if idle:
        raise ConfigError(
            f"mesh={given} takes {len(used)} of the {len(devices)} devices here, and leaves process {min(idle)} none: "
            "make it take all"
        )
    return Mesh(_placed(sizes, used), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _placed(sizes: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    """Devices in the shape of the mesh, neighbours in a TPU's torus beside each other; between slices, replicas alone.

    `jax.make_mesh` refuses several slices, and but for a v5e to divide one side of a torus among two axes.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"})
    if slices <= 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] % slices:
        raise ConfigError(
            f"mesh={sizes} has {sizes[0]} replica(s), and the devices are in {slices} slices, between which replicas "
            f"alone are divided: make mesh.replica a multiple of {slices}"
        )
    within = (sizes[0] // slices, *sizes[1:])
    return mesh_utils.create_hybrid_device_mesh(
        within, (slices, *(1 for _ in sizes[1:])), devices, allow_split_physical_axes=True
    )


def mesh_sizes(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Devices along each of AXES, where -1 takes what is left of that many `devices`, and at least one."""
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    return tuple(max(1, devices // known) if size == -1 else size for size in sizes)


def shardings(table: Table, mesh: Mesh) -> Any:
    """A `NamedSharding` for every parameter of the table."""
    return jax.tree.map(lambda row: NamedSharding(mesh, spec(row, mesh)), table)


def spec(row: Row, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The partition of one parameter. An axis that its mesh axis doesn't divide stays whole."""
    logical: Any = nn.logical_to_mesh_axes(row.axes, RULES)
    divided = (
        name if name and size % math.prod(mesh.shape[axis] for axis in _tuple(name)) == 0 else None
        for size, name in zip(row.shape, logical, strict=True)
    )
    return PartitionSpec(*divided) if row.shape else PartitionSpec()


def _tuple(name: str | tuple[str, ...]) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else name


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the data axes. Records hold T+1 tokens, so that the sequence is split after slicing."""
    return NamedSharding(mesh, PartitionSpec(("replica", "fsdp")))


class LocalRows:
    """The rows of batches of one size that this process's devices hold; all of them where it is alone.

    Attributes:
      slices: of a batch.
    """

    def __init__(self, mesh: Mesh, size: int):
        """Those of batches of `size` rows, which the mesh's data axes divide."""
        self._size, self._sharding = size, batch_sharding(mesh)
        indices = self._sharding.addressable_devices_indices_map((size,)).values()
        self.slices: list[slice] = []
        for start, end in sorted({index[0].indices(size)[:2] for index in indices if index}):
            adjoins = self.slices and self.slices[-1].stop == start
            self.slices.append(slice(self.slices.pop().start if adjoins else start, end))

    @property
    def are_all(self) -> bool:
        """Whether this process has whole batches."""
        return self.slices == [slice(0, self._size)]

    def of(self, batch: np.ndarray) -> np.ndarray:
        """These rows of a batch."""
        return np.concatenate([batch[rows] for rows in self.slices])

    def placed(self, rows: np.ndarray) -> jax.Array:
        """The array of a whole batch on the mesh's devices, of which each process has its rows."""
        if self.are_all:
            return jax.device_put(rows, self._sharding)
        return jax.make_array_from_process_local_data(self._sharding, rows, (self._size, *rows.shape[1:]))


def fetch(tree: Any) -> Any:
    """Arrays of devices as arrays of the host, whole on every host."""

    def whole(array: Any) -> Any:
        if array.is_fully_addressable or array.is_fully_replicated:
            return array
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def on_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Traces `function` where the logical axes of activations mean those of the mesh."""

    @functools.wraps(function)
    def traced(*arguments: Any, **options: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
            return function(*arguments, **options)

    return traced


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
