"""GPT2LMHeadModel: pre-norm, LayerNorm, learned positions, biases; matrices lie [in, out] (Radford et al. 2019)."""

from jaxstab.exchange.families.arcee import ACTIVATIONS
from jaxstab.exchange.family import TORCH, Family, Key

QKV = ("layers/self_attn/q_proj", "layers/self_attn/k_proj", "layers/self_attn/v_proj")

GPT2 = Family(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    prefix="transformer.",
    modules={
        "wte": "embed_tokens",
        "wpe": "embed_positions",
        "h.{}.ln_1": "layers/input_layernorm",
        "h.{}.attn.c_attn": QKV,
        "h.{}.attn.c_proj": "layers/self_attn/o_proj",
        "h.{}.ln_2": "layers/post_attention_layernorm",
        "h.{}.mlp.c_fc": "layers/mlp/up_proj",
        "h.{}.mlp.c_proj": "layers/mlp/down_proj",
        "ln_f": "norm",
        "lm_head": "lm_head",
    },
    keys=(
        Key("vocab_size", "vocabulary"),
        Key("n_embd", "width"),
        Key("n_layer", "layers"),
        Key("n_head", "heads"),
        Key("n_inner", "mlp_width"),
        Key("n_positions", "max_length", 1024),
        Key("layer_norm_epsilon", "norm_eps", 1e-5),
        Key("activation_function", "mlp", "gelu_new", {"gelu_new": "gelu_tanh", **ACTIVATIONS}),
        Key("tie_word_embeddings", "tie_embeddings", True),
    ),
    ours={"norm": "layernorm", "positions": "learned", "bias": True},
    theirs={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "reorder_and_upcast_attn": False,
    },
    ignored=("attn.bias", "attn.masked_bias"),
    layout=TORCH._replace(transposed=False),
)
