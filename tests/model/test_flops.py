"""FLOPs of a token: published models counted by hand, and XLA's count of the products that a forward pass makes."""

import jax
import pytest

from jaxstab.model.config import ModelConfig
from jaxstab.model.flops import CONVENTIONS, flops_per_token
from jaxstab.model.transformer import Transformer, read_table

GPT3 = ModelConfig(width=12288, layers=96, heads=96, vocabulary=50257, positions="learned")
LLAMA3_8B = ModelConfig(width=4096, layers=32, heads=32, kv_heads=8, mlp_width=14336, vocabulary=128256, mlp="swiglu")
SMALL = dict(width=256, layers=1, heads=2, mlp_width=512, vocabulary=1024, max_length=256)


@pytest.mark.parametrize(
    ("config", "length", "products", "attention"),
    [
        (GPT3, 2048, 6 * (96 * 12 * 12288**2 + 12288 * 50257), 12 * 96 * 12288 * 2048),
        # The 8,030,261,248 parameters of Llama 3 8B, without its embeddings and 65 norms of 4,096.
        (LLAMA3_8B, 8192, 6 * (8_030_261_248 - 128256 * 4096 - 65 * 4096), 12 * 32 * 32 * 128 * 8192),
    ],
)
def test_published_models(config, length, products, attention):
    flops = flops_per_token(read_table(config), length)
    assert tuple(flops) == CONVENTIONS
    assert flops == {"6N": products, "causal": products + attention // 2, "full": products + attention}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mlp": "swiglu"},
        {"kv_heads": 1},
        {"tie_embeddings": True},
        {"positions": "learned", "norm": "layernorm", "bias": True},
        {"heads": 4, "vocabulary": 64},
    ],
    ids=str,
)
def test_xla_counts_as_many_in_a_forward_pass(changes):
    """XLA counts what isn't a product too, which is 1% at this width; a missing matrix would be more."""
    config = ModelConfig(**{**SMALL, **changes}, attention="xla")  # whose products are over all keys
    batch, length = 2, config.max_length
    tokens = jax.ShapeDtypeStruct((batch, length), int)
    weights = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)
    counted = jax.jit(Transformer(config).apply).lower(weights, tokens).cost_analysis()["flops"]
    expected = flops_per_token(read_table(config), length)["full"] / 3
    assert expected < counted / (batch * length) < 1.02 * expected
