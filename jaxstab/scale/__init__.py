"""Running on many devices."""

from jaxstab.scale.mesh import AXES, RULES, MeshConfig, batch_sharding, make_mesh, replicated, shardings, spec

__all__ = ["AXES", "RULES", "MeshConfig", "batch_sharding", "make_mesh", "replicated", "shardings", "spec"]
