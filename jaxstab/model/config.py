"""The keys of the model."""

from __future__ import annotations

import dataclasses

from jaxstab.config import ConfigError, MethodConfig, Options, Range, build_method, option, section
from jaxstab.model.activations import ACTIVATIONS
from jaxstab.model.embeddings import EmbeddingConfig
from jaxstab.model.norms import NORMS, POINTWISE
from jaxstab.model.placements import PLACEMENTS, PlacementConfig

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Options):
    """A decoder-only Transformer. The defaults are the architecture of Nishida et al. 2024, Table 10, at 130M."""

    width: int = option(768, "Model width d.", Range(1))
    layers: int = option(12, "Number of blocks N.", Range(1))
    heads: int = option(12, "Query heads.", Range(1))
    kv_heads: int = option(
        0, "Key and value heads (grouped-query attention); 0 means as many as query heads.", Range(0)
    )
    mlp_width: int = option(0, "Hidden width of the MLP; 0 means four times the width.", Range(0))
    vocabulary: int = option(32000, "Size of the vocabulary; 0 takes the tokenizer's.", Range(0))
    max_length: int = option(2048, "Longest sequence; the number of learned positions.", Range(1))
    head_size: int = option(0, "Size of a head; 0 means the width over the heads.", Range(0))
    norm: str = option("rmsnorm", "Normalization layer (model/norms.py).", choices=tuple(NORMS))
    norm_eps: float = option(1e-5, "Epsilon of the normalization layers.", Range(0))
    norm_alpha: float = option(
        0.5, f"Initial α of {' and '.join(POINTWISE)}, which stand in a norm's place.", Range(above=0)
    )
    positions: str = option("rotary", "Positional encoding.", choices=("rotary", "learned"))
    position_offset: int = option(
        0, "Rows of the learned positions that stand before the first one's; OPT has 2.", Range(0)
    )
    rope_theta: float = option(10000.0, "Base period of rotary embedding (rotate-half).", Range(above=0))
    rotary_fraction: float = option(
        1.0, "Share of every head that is rotated, its first entries; 0.25 in Pythia.", Range(above=0, most=1)
    )
    mlp: str = option("gelu", "MLP; `gelu` is exact (erf), `swiglu` adds a gate_proj.", choices=tuple(ACTIVATIONS))
    mlp_clamp: float = option(
        0.0, "c to which swiglu's gate and up are clamped, ±c: 10 in DeepSeek-V4, 7 in gpt-oss; 0 is off.", Range(0)
    )
    bias: bool = option(False, "Biases in the linear layers of the blocks.")
    qkv_bias: bool = option(False, "Biases of q_proj, k_proj and v_proj alone, as in Qwen 2.")
    tie_embeddings: bool = option(False, "Whether lm_head is the transpose of the stored embed_tokens.")
    mask_documents: bool = option(False, "Whether attention stops at the end of a document.")
    embedding: MethodConfig = section(EmbeddingConfig)
    norm_placement: MethodConfig = section(PlacementConfig)
    parallel: bool = option(
        False, "Whether the MLP reads what attention reads, x + f(N(x)) + g(N'(x)), as in Pythia; pre-norm only."
    )
    qk_norm: bool = option(False, "Norms on queries and keys, per head, before the rotation (Wortsman et al. 2023).")
    qk_norm_joint: bool = option(False, "Whether these norms are over all heads at once, as in OLMo 2.")
    attention_gate: str = option(
        "none",
        "sigmoid(x W_g) on what attention puts out, before o_proj: one gate a head, or one an element (Qiu et al. "
        "2025, arXiv:2505.06708); its matrix is g_proj.",
        choices=("none", "head", "element"),
    )
    attention_sink: bool = option(
        False,
        "A trained logit a head that takes its share of every softmax and gives no value, 0 at first (gpt-oss).",
    )
    attention_softcap: float = option(0.0, "c of c tanh(z/c) on attention logits z; 50 in Gemma 2; 0 is off.", Range(0))
    logits_softcap: float = option(0.0, "c of c tanh(z/c) on output logits z; 30 in Gemma 2; 0 is off.", Range(0))
    dtype: str = option("float32", "Compute dtype; parameters, norms, softmax and loss stay float32.", choices=DTYPES)
    remat: str = option(
        "full",
        "What a block's backward pass recomputes: everything, all but matrix products, or nothing. `offload` "
        "recomputes everything, from inputs of blocks that wait in the host's memory.",
        choices=("full", "dots", "none", "offload"),
    )
    attention: str = option(
        "auto",
        "Kernel of attention; `cudnn` is NVIDIA's and `splash` Google's for TPUs, which `auto` takes on such a device "
        "in bfloat16 where it does all that the run needs. The run then says so in its first line. Lengths that "
        "aren't a multiple of 128 are `chunked` under `splash`.",
        choices=("auto", "chunked", "xla", "cudnn", "splash"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads and not self.head_size:
            raise ConfigError(f"model.width={self.width} is not divisible by model.heads={self.heads}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ConfigError(f"model.heads={self.heads} is not divisible by model.kv_heads={self.kv_heads}")
        if self.attention == "splash" and self.attention_softcap:
            capped = f"model.attention_softcap={self.attention_softcap}"
            raise ConfigError(f"model.attention=splash takes no capped logits, as {capped} asks for; auto and xla do")
        if self.attention == "cudnn" and self.cudnn_obstacle:
            raise ConfigError(f"model.attention=cudnn takes {self.cudnn_obstacle}; auto and xla take it")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ConfigError(
                f"rotary positions need an even head size, but model.width={self.width} over "
                f"model.heads={self.heads} gives {self.head_dim}"
            )
        if self.positions == "rotary" and (self.rotary_dim % 2 or not self.rotary_dim):
            raise ConfigError(
                f"model.rotary_fraction={self.rotary_fraction} of a head of {self.head_dim} is {self.rotary_dim} "
                "entries, and rotary positions need an even number of them"
            )
        if self.mlp_clamp and self.mlp != "swiglu":
            raise ConfigError(f"model.mlp_clamp={self.mlp_clamp} is for model.mlp=swiglu, not {self.mlp}")
        if self.norm_alpha != ModelConfig.norm_alpha and self.norm not in POINTWISE:
            raise ConfigError(
                f"model.norm_alpha={self.norm_alpha} is for model.norm={' or '.join(POINTWISE)}, not {self.norm}"
            )
        if self.attention_sink and self.attention in ("cudnn", "splash"):
            raise ConfigError(f"model.attention={self.attention} has no attention sinks; auto, chunked and xla do")
        if self.bias and self.qkv_bias:
            raise ConfigError("model.bias=True has the biases of model.qkv_bias=True too; leave one of them out")
        if self.qk_norm_joint and not self.qk_norm:
            raise ConfigError("model.qk_norm_joint=True has no effect without model.qk_norm=True; set both or neither")
        if self.parallel and not build_method(self.norm_placement, PLACEMENTS).bounded:
            raise ConfigError(
                f"model.parallel=True needs branches of the form x + f(N(x)), model.norm_placement.method=pre, not "
                f"{self.norm_placement.method}"
            )

    @property
    def head_dim(self) -> int:
        return self.head_size or self.width // self.heads

    @property
    def rotary_dim(self) -> int:
        """The entries of a head that are rotated."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def cudnn_obstacle(self) -> str:
        """What keeps cuDNN's kernel from the attention of this model, or ""."""
        if self.dtype != "bfloat16":
            return f"bfloat16 alone, not model.dtype={self.dtype}"
        if self.attention_sink:
            return "no model.attention_sink"
        if self.attention_softcap:
            return f"no capped logits, as model.attention_softcap={self.attention_softcap} asks for"
        if self.head_dim % 8 or self.head_dim > 256:
            return f"heads of a multiple of 8 up to 256, not {self.head_dim}"
        return ""
