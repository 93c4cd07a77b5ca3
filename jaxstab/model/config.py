"""The keys of the model."""

from __future__ import annotations

import dataclasses

from jaxstab.config import ConfigError, MethodConfig, option, section
from jaxstab.model.activations import ACTIVATIONS
from jaxstab.model.embeddings import EmbeddingConfig
from jaxstab.model.placements import PlacementConfig

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer. The defaults are the architecture of Nishida et al. 2024, Table 10, at 130M."""

    width: int = option(768, "Model width d.")
    layers: int = option(12, "Number of blocks N.")
    heads: int = option(12, "Query heads.")
    kv_heads: int = option(0, "Key and value heads (grouped-query attention); 0 means as many as query heads.")
    mlp_width: int = option(0, "Hidden width of the MLP; 0 means four times the width.")
    vocabulary: int = option(32000, "Size of the vocabulary; 0 takes the tokenizer's.")
    max_length: int = option(2048, "Longest sequence; the number of learned positions.")
    norm: str = option("rmsnorm", "Normalization layer.", choices=("rmsnorm", "layernorm"))
    norm_eps: float = option(1e-5, "Epsilon of the normalization layers.")
    positions: str = option("rotary", "Positional encoding.", choices=("rotary", "learned"))
    rope_theta: float = option(10000.0, "Base period of rotary embedding (rotate-half).")
    mlp: str = option("gelu", "MLP; `gelu` is exact (erf), `swiglu` adds a gate_proj.", choices=tuple(ACTIVATIONS))
    bias: bool = option(False, "Biases in the linear layers of the blocks.")
    tie_embeddings: bool = option(False, "Whether lm_head is the transpose of the stored embed_tokens.")
    mask_documents: bool = option(False, "Whether attention stops at the end of a document.")
    embedding: MethodConfig = section(EmbeddingConfig)
    norm_placement: MethodConfig = section(PlacementConfig)
    qk_norm: bool = option(False, "Norms on queries and keys, per head, before the rotation (Wortsman et al. 2023).")
    attention_softcap: float = option(0.0, "c of c tanh(z/c) on attention logits z; 50 in Gemma 2; 0 is off.")
    logits_softcap: float = option(0.0, "c of c tanh(z/c) on output logits z; 30 in Gemma 2; 0 is off.")
    dtype: str = option("float32", "Compute dtype; parameters, norms, softmax and loss stay float32.", choices=DTYPES)
    remat: str = option(
        "full",
        "What a block's backward pass recomputes: everything, all but matrix products, or nothing.",
        choices=("full", "dots", "none"),
    )
    attention: str = option(
        "xla", "Implementation of attention; `cudnn` is the fused kernel of NVIDIA GPUs.", choices=("xla", "cudnn")
    )

    def __post_init__(self) -> None:
        for key, least in (
            ("width", 1),
            ("layers", 1),
            ("heads", 1),
            ("max_length", 1),
            ("kv_heads", 0),
            ("mlp_width", 0),
        ):
            if getattr(self, key) < least:
                raise ConfigError(f"model.{key}={getattr(self, key)} must be at least {least}")
        if self.norm_eps < 0:
            raise ConfigError(f"model.norm_eps={self.norm_eps} must not be negative")
        if self.width % self.heads:
            raise ConfigError(f"model.width={self.width} is not divisible by model.heads={self.heads}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ConfigError(f"model.heads={self.heads} is not divisible by model.kv_heads={self.kv_heads}")
        for key in ("attention_softcap", "logits_softcap"):
            if getattr(self, key) < 0:
                raise ConfigError(f"model.{key}={getattr(self, key)} must not be negative; 0 is off")
        if self.attention_softcap and self.attention != "xla":
            raise ConfigError(f"model.attention_softcap needs model.attention=xla, not {self.attention}")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ConfigError(
                f"rotary positions need an even head size, but model.width={self.width} over "
                f"model.heads={self.heads} gives {self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads
