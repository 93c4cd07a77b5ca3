"""Running on many devices."""

from jaxstab.scale.mesh import (
    AXES,
    RULES,
    RULES_WITHIN_REPLICA,
    MeshConfig,
    batch_sharding,
    make_mesh,
    mesh_sizes,
    on_mesh,
    replicated,
    shardings,
    spec,
)

__all__ = [
    "AXES",
    "RULES",
    "RULES_WITHIN_REPLICA",
    "MeshConfig",
    "batch_sharding",
    "make_mesh",
    "mesh_sizes",
    "on_mesh",
    "replicated",
    "shardings",
    "spec",
]
