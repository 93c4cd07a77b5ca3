"""OPTForCausalLM: pre-norm, LayerNorm, ReLU, biases; learned positions begin with the third row (Zhang et al. 2022)."""

from jaxstab.exchange.families.arcee import ACTIVATIONS
from jaxstab.exchange.family import Family, Key

OPT = Family(
    architecture="OPTForCausalLM",
    model_type="opt",
    prefix="model.decoder.",
    modules={
        "embed_tokens": "embed_tokens",
        "embed_positions": "embed_positions",
        "layers.{}.self_attn_layer_norm": "layers/input_layernorm",
        "layers.{}.self_attn.q_proj": "layers/self_attn/q_proj",
        "layers.{}.self_attn.k_proj": "layers/self_attn/k_proj",
        "layers.{}.self_attn.v_proj": "layers/self_attn/v_proj",
        "layers.{}.self_attn.out_proj": "layers/self_attn/o_proj",
        "layers.{}.final_layer_norm": "layers/post_attention_layernorm",
        "layers.{}.fc1": "layers/mlp/up_proj",
        "layers.{}.fc2": "layers/mlp/down_proj",
        "final_layer_norm": "norm",
        "lm_head": "lm_head",
    },
    keys=(
        Key("vocab_size", "vocabulary"),
        Key("hidden_size", "width"),
        Key("word_embed_proj_dim", "width"),
        Key("num_hidden_layers", "layers"),
        Key("num_attention_heads", "heads"),
        Key("ffn_dim", "mlp_width"),
        Key("max_position_embeddings", "max_length", 2048),
        Key("activation_function", "mlp", "relu", {"relu": "relu", **ACTIVATIONS}),
        Key("enable_bias", "bias", True),
        Key("tie_word_embeddings", "tie_embeddings", True),
    ),
    # Its LayerNorms have PyTorch's eps, which config.json doesn't tell.
    ours={"norm": "layernorm", "positions": "learned", "position_offset": 2, "bias": True, "norm_eps": 1e-5},
    theirs={
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "layer_norm_elementwise_affine": True,
    },
)
