"""Initial scales and drawing: which standard deviation each effective matrix starts with, and the draw itself."""

from collections.abc import Callable

from jaxstab.config import method_section
from jaxstab.initialize.autoinit import autoinit
from jaxstab.initialize.draw import draw, scaled
from jaxstab.initialize.fixup import fixup
from jaxstab.initialize.scales import Scale, deepnorm, ds_init, he, megatron, normal, small, t_fixup, xavier
from jaxstab.initialize.transfer import Transfer, complete_p, mup
from jaxstab.initialize.yulan_mini import yulan_mini

SCALES: dict[str, Callable[..., Scale | Transfer]] = {
    "he": he,
    "small": small,
    "megatron": megatron,
    "xavier": xavier,
    "normal": normal,
    "ds_init": ds_init,
    "autoinit": autoinit,
    "fixup": fixup,
    "t_fixup": t_fixup,
    "deepnorm": deepnorm,
    "mup": mup,
    "complete_p": complete_p,
    "yulan_mini": yulan_mini,
}

InitConfig = method_section(
    "InitConfig", SCALES, "he", "Initial scale of the effective weights; the backbone of WeSaR (jaxstab/initialize)."
)

__all__ = [
    "SCALES",
    "InitConfig",
    "Scale",
    "Transfer",
    "autoinit",
    "complete_p",
    "deepnorm",
    "draw",
    "ds_init",
    "fixup",
    "he",
    "megatron",
    "mup",
    "normal",
    "scaled",
    "small",
    "t_fixup",
    "xavier",
    "yulan_mini",
]
