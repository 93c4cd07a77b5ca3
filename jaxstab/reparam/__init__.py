"""Reparameterizations: one file a method, one line here."""

from jaxstab.config import method_section
from jaxstab.reparam.base import Method, Reparameterization, reparameterize
from jaxstab.reparam.identity import identity
from jaxstab.reparam.wesar import wesar

METHODS = {
    "identity": identity,
    "wesar": wesar,
}

ReparamConfig = method_section("ReparamConfig", METHODS, "identity", "How matrices are stored (jaxstab/reparam).")

__all__ = ["METHODS", "Method", "ReparamConfig", "Reparameterization", "identity", "reparameterize", "wesar"]
