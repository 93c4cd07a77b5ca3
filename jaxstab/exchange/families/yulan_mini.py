"""YuLan-Mini as it was trained, with WeSaR's gates beside its matrices (Hu et al. 2024; RUC-GSAI/YuLan-Mini)."""

import math
from collections.abc import Mapping
from typing import Any

from jaxstab.config import UserError
from jaxstab.exchange.families.llama import ATTENTION, ENDS, EPS, GATE, KEYS, MLP, NORMS, SILU
from jaxstab.exchange.family import Family, Key

GATES = {
    **{f"layers.{{}}.self_attn.{name}_alpha": (f"layers/self_attn/{name}",) for name in ("q_proj", "k_proj", "v_proj")},
    "layers.{}.self_attn.o_proj_alpha": ("layers/self_attn/o_proj",),
    "layers.{}.gate_up_proj_alpha": ("layers/mlp/gate_proj", "layers/mlp/up_proj"),
    "layers.{}.down_proj_alpha": ("layers/mlp/down_proj",),
    "layers.{}.input_layernorm_alpha": ("layers/input_layernorm",),
    "layers.{}.post_attention_layernorm_alpha": ("layers/post_attention_layernorm",),
    "norm_alpha": ("norm",),
    "lm_head_alpha": ("lm_head",),
}


def residual(theirs: Mapping[str, Any]) -> float:
    """The constant on its residual branches: the config's, or 1.4/√N as in its release."""
    layers, shrink = theirs.get("num_hidden_layers", 1), theirs.get("hidden_states_shrink", 1)
    if "scale_depth" not in theirs and isinstance(shrink, float) and 0 < shrink < 1:
        return shrink
    depth = theirs.get("scale_depth", 1.4)
    if not isinstance(depth, int | float):
        raise UserError(f"its config.json has scale_depth={depth!r}, which is no number")
    return depth / math.sqrt(layers)


YULAN_MINI = Family(
    architecture="YuLanMiniModelForCausalLM",
    model_type="yulanmini",
    modules={**ENDS, **NORMS, **ATTENTION, **MLP, **GATE},
    keys=(
        *KEYS,
        SILU,
        EPS,
        Key("attention_bias", "qkv_bias", True),
        Key("scale_emb", "embedding.scaled.factor", 1),
        Key("dim_model_base_logits", "width"),
        Key("dim_model_base_attn", "head_size"),
    ),
    ours={"embedding.method": "scaled"},
    theirs={
        "rms_type": "llama",
        "wesar_weights": True,
        "use_emb_alpha": False,
        "qk_layernorm": False,
        "embedding_ln": False,
        "embedding_rmsln": False,
        "ln_scale": 1.0,
        "use_sliding_window": False,
    },
    gates=GATES,
    branch=residual,
)
