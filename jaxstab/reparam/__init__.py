"""Reparameterizations: one file per method, one line here."""

from jaxstab.config import method_section
from jaxstab.reparam.base import Method, Reparameterization, reparameterize
from jaxstab.reparam.compose import compose
from jaxstab.reparam.fixup import fixup
from jaxstab.reparam.identity import identity
from jaxstab.reparam.learnable_multipliers import learnable_multipliers
from jaxstab.reparam.mlra import mlra
from jaxstab.reparam.rescaled_rates import rescaled_rates
from jaxstab.reparam.residual_scaling import residual_scaling
from jaxstab.reparam.rezero import rezero
from jaxstab.reparam.sigma_reparam import sigma_reparam
from jaxstab.reparam.weight_norm import Moments, linen_moments, weight_norm
from jaxstab.reparam.wesar import wesar

METHODS = {
    "identity": identity,
    "wesar": wesar,
    "weight_norm": weight_norm,
    "sigma_reparam": sigma_reparam,
    "residual_scaling": residual_scaling,
    "rescaled_rates": rescaled_rates,
    "rezero": rezero,
    "fixup": fixup,
    "mlra": mlra,
    "learnable_multipliers": learnable_multipliers,
}

ReparamConfig = method_section(
    "ReparamConfig",
    METHODS,
    "identity",
    "How matrices are stored (jaxstab/reparam). Several are joined, the first nearest to the model: `mlra+wesar`.",
    joined="+",
)

__all__ = [
    "METHODS",
    "Method",
    "Moments",
    "ReparamConfig",
    "Reparameterization",
    "compose",
    "fixup",
    "identity",
    "learnable_multipliers",
    "linen_moments",
    "mlra",
    "reparameterize",
    "rescaled_rates",
    "residual_scaling",
    "rezero",
    "sigma_reparam",
    "weight_norm",
    "wesar",
]
