"""Initial scales and drawing: which standard deviation each effective matrix starts with, and the draw itself."""

from jaxstab.config import method_section
from jaxstab.initialize.draw import draw, scaled
from jaxstab.initialize.scales import Scale, he, small

SCALES = {
    "he": he,
    "small": small,
}

InitConfig = method_section(
    "InitConfig", SCALES, "he", "Initial scale of the effective weights; the backbone of WeSaR (jaxstab/initialize)."
)

__all__ = ["SCALES", "InitConfig", "Scale", "draw", "he", "scaled", "small"]
