"""Olmo2ForCausalLM: norms on the branches' outputs, and on all queries and all keys at once (OLMo 2, 2025)."""

from jaxstab.exchange.families.llama import ATTENTION, ENDS, GATE, KEYS, MLP, SILU
from jaxstab.exchange.families.qwen3 import QK_NORMS
from jaxstab.exchange.family import Family, Key

NORMS = {f"layers.{{}}.{name}": f"layers/{name}" for name in ("post_attention_layernorm", "post_feedforward_layernorm")}

OLMO2 = Family(
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    modules={**ENDS, **NORMS, **ATTENTION, **QK_NORMS, **MLP, **GATE},
    keys=(*KEYS, SILU, Key("rms_norm_eps", "norm_eps", 1e-5)),
    ours={"norm_placement.method": "reordered", "qk_norm": True, "qk_norm_joint": True},
    theirs={"attention_bias": False},
)
