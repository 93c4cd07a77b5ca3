"""Qwen2ForCausalLM: Llama with biases of queries, keys and values (Qwen team 2024)."""

from jaxstab.exchange.families.llama import ATTENTION, ENDS, EPS, GATE, KEYS, MLP, NORMS, SILU
from jaxstab.exchange.family import Family

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    modules={**ENDS, **NORMS, **ATTENTION, **MLP, **GATE},
    keys=(*KEYS, SILU, EPS),
    ours={"qkv_bias": True},
    theirs={"use_sliding_window": False},
)
