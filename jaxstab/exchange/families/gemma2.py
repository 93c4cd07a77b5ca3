"""Gemma2ForCausalLM with SwiGLU: norms on both sides of a branch, soft-caps, embeddings times √d (Gemma team 2024)."""

from jaxstab.exchange.families.llama import ATTENTION, ENDS, GATE, HEAD_SIZE, KEYS, MLP, NORMS
from jaxstab.exchange.families.olmo2 import NORMS as AFTER
from jaxstab.exchange.family import Family, Key

GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    modules={
        **ENDS,
        **NORMS,
        **AFTER,
        "layers.{}.pre_feedforward_layernorm": "layers/pre_feedforward_layernorm",
        **ATTENTION,
        **MLP,
        **GATE,
    },
    keys=(
        *(key for key in KEYS if key.ours != "tie_embeddings"),
        Key("tie_word_embeddings", "tie_embeddings", True),
        HEAD_SIZE._replace(default=256),
        Key("query_pre_attn_scalar", "head_size", 256),
        Key("hidden_activation", "mlp", "gelu_pytorch_tanh", {"silu": "swiglu"}),
        Key("rms_norm_eps", "norm_eps", 1e-6),
        Key("attn_logit_softcapping", "attention_softcap", 50.0, null=0.0),
        Key("final_logit_softcapping", "logits_softcap", 30.0, null=0.0),
    ),
    ours={"norm_placement.method": "peri", "embedding.method": "scaled"},
    theirs={"attention_bias": False},
    norm_offset=1.0,
    full_attention=True,
)
