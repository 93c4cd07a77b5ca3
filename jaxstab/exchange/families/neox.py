"""GPTNeoXForCausalLM, of Pythia: LayerNorm, parallel branches, a part of each head rotated (Biderman et al. 2023)."""

import numpy as np

from jaxstab.exchange.families.arcee import ACTIVATIONS
from jaxstab.exchange.families.gpt2 import QKV
from jaxstab.exchange.family import TORCH, Family, Key


def _by_head(array: np.ndarray, parts: int, heads: int) -> list[np.ndarray]:
    """The query, key and value of a head lie one after the other, head by head."""
    split = array.reshape(*array.shape[:-1], heads, parts, -1)
    return [split[..., part, :].reshape(*array.shape[:-1], -1) for part in range(parts)]


def _of_heads(arrays: list[np.ndarray], heads: int) -> np.ndarray:
    split = [array.reshape(*array.shape[:-1], heads, -1) for array in arrays]
    return np.stack(split, axis=-2).reshape(*arrays[0].shape[:-1], -1)


NEOX = Family(
    architecture="GPTNeoXForCausalLM",
    model_type="gpt_neox",
    prefix="gpt_neox.",
    head="embed_out.weight",
    modules={
        "embed_in": "embed_tokens",
        "layers.{}.input_layernorm": "layers/input_layernorm",
        "layers.{}.attention.query_key_value": QKV,
        "layers.{}.attention.dense": "layers/self_attn/o_proj",
        "layers.{}.post_attention_layernorm": "layers/post_attention_layernorm",
        "layers.{}.mlp.dense_h_to_4h": "layers/mlp/up_proj",
        "layers.{}.mlp.dense_4h_to_h": "layers/mlp/down_proj",
        "final_layer_norm": "norm",
        "embed_out": "lm_head",
    },
    keys=(
        Key("vocab_size", "vocabulary"),
        Key("hidden_size", "width"),
        Key("num_hidden_layers", "layers"),
        Key("num_attention_heads", "heads"),
        Key("intermediate_size", "mlp_width"),
        Key("max_position_embeddings", "max_length", 2048),
        Key("layer_norm_eps", "norm_eps", 1e-5),
        Key("rope_theta", "rope_theta", 10000.0),
        Key("partial_rotary_factor", "rotary_fraction", 0.25),
        Key("use_parallel_residual", "parallel", True),
        Key("hidden_act", "mlp", "gelu", {"gelu": "gelu", **ACTIVATIONS}),
        Key("tie_word_embeddings", "tie_embeddings", False),
    ),
    ours={"norm": "layernorm", "bias": True},
    theirs={"attention_bias": True},
    ignored=("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"),
    layout=TORCH._replace(split=_by_head, join=_of_heads),
)
