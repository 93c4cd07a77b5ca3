"""Qwen3ForCausalLM: Llama with norms on queries and keys, per head (Qwen team 2025)."""

from jaxstab.exchange.families.llama import ATTENTION, ENDS, EPS, GATE, HEAD_SIZE, KEYS, MLP, NORMS, SILU
from jaxstab.exchange.family import Family

QK_NORMS = {f"layers.{{}}.self_attn.{name}": f"layers/self_attn/{name}" for name in ("q_norm", "k_norm")}

QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    modules={**ENDS, **NORMS, **ATTENTION, **QK_NORMS, **MLP, **GATE},
    keys=(*KEYS, HEAD_SIZE._replace(default=128), SILU, EPS),
    ours={"qk_norm": True},
    theirs={"attention_bias": False, "use_sliding_window": False},
)
