"""LlamaForCausalLM: pre-norm, RMSNorm, rotary positions, SwiGLU (Touvron et al. 2023)."""

from jaxstab.exchange.family import Family, Key

ATTENTION = {
    f"layers.{{}}.self_attn.{name}": f"layers/self_attn/{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")
}
MLP = {f"layers.{{}}.mlp.{name}": f"layers/mlp/{name}" for name in ("up_proj", "down_proj")}
ENDS = {"embed_tokens": "embed_tokens", "norm": "norm", "lm_head": "lm_head"}
NORMS = {f"layers.{{}}.{name}": f"layers/{name}" for name in ("input_layernorm", "post_attention_layernorm")}
GATE = {"layers.{}.mlp.gate_proj": "layers/mlp/gate_proj"}

# What Llama's config.json shares with those of its heirs.
KEYS = (
    Key("vocab_size", "vocabulary"),
    Key("hidden_size", "width"),
    Key("num_hidden_layers", "layers"),
    Key("num_attention_heads", "heads"),
    Key("num_key_value_heads", "kv_heads"),
    Key("intermediate_size", "mlp_width"),
    Key("max_position_embeddings", "max_length", 2048),
    Key("rope_theta", "rope_theta", 10000.0),
    Key("tie_word_embeddings", "tie_embeddings", False),
)
HEAD_SIZE = Key("head_dim", "head_size")
SILU = Key("hidden_act", "mlp", "silu", {"silu": "swiglu"})
EPS = Key("rms_norm_eps", "norm_eps", 1e-6)
BIASES = Key("attention_bias", "bias", False), Key("mlp_bias", "bias", False)

LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    modules={**ENDS, **NORMS, **ATTENTION, **MLP, **GATE},
    keys=(*KEYS, HEAD_SIZE, SILU, EPS, *BIASES),
    ours={},
)
