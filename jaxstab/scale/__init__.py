"""Running on many devices."""

from jaxstab.scale.cluster import HostsConfig
from jaxstab.scale.hosts import ALONE, Hosts
from jaxstab.scale.joining import joined
from jaxstab.scale.mesh import (
    AXES,
    RULES,
    RULES_WITHIN_REPLICA,
    LocalRows,
    MeshConfig,
    batch_sharding,
    fetch,
    make_mesh,
    mesh_sizes,
    on_mesh,
    replicated,
    shardings,
    spec,
)

__all__ = [
    "ALONE",
    "AXES",
    "RULES",
    "RULES_WITHIN_REPLICA",
    "Hosts",
    "HostsConfig",
    "LocalRows",
    "MeshConfig",
    "batch_sharding",
    "fetch",
    "joined",
    "make_mesh",
    "mesh_sizes",
    "on_mesh",
    "replicated",
    "shardings",
    "spec",
]
