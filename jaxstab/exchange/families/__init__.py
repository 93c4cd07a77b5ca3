"""The classes of `transformers` that models go to and come from: one file each, one line here."""

from jaxstab.exchange.families.arcee import ARCEE
from jaxstab.exchange.families.gemma2 import GEMMA2
from jaxstab.exchange.families.gpt2 import GPT2
from jaxstab.exchange.families.llama import LLAMA
from jaxstab.exchange.families.neox import NEOX
from jaxstab.exchange.families.olmo2 import OLMO2
from jaxstab.exchange.families.opt import OPT
from jaxstab.exchange.families.qwen2 import QWEN2
from jaxstab.exchange.families.qwen3 import QWEN3
from jaxstab.exchange.families.yulan_mini import YULAN_MINI

# A model goes to the first that it fits.
FAMILIES = {
    family.model_type: family for family in (LLAMA, QWEN2, QWEN3, ARCEE, OLMO2, GEMMA2, GPT2, OPT, NEOX, YULAN_MINI)
}

__all__ = ["FAMILIES"]
