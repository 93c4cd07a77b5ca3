"""A trained Llama from elsewhere, llama2.c's stories260K: its file, read into our config and weights."""

import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.model.config import ModelConfig

STORIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260k"

needs_stories = pytest.mark.skipif(
    not STORIES.exists(), reason=f"needs {STORIES}; test_transformer.py is this model's twin on weights of its own"
)


def read_llama2c(path):
    """Version 0 of the format: seven int32, then float32 arrays, matrices [layer, out, in]."""
    with open(path, "rb") as file:
        width, mlp_width, layers, heads, kv_heads, vocabulary, length = struct.unpack("7i", file.read(28))
        values = np.fromfile(file, np.float32)
    head = width // heads
    kv_width = kv_heads * head
    shapes = {
        "embed": (vocabulary, width),
        "attention_norm": (layers, width),
        "q": (layers, width, width),
        "k": (layers, kv_width, width),
        "v": (layers, kv_width, width),
        "o": (layers, width, width),
        "mlp_norm": (layers, width),
        "gate": (layers, mlp_width, width),
        "down": (layers, width, mlp_width),
        "up": (layers, mlp_width, width),
        "norm": (width,),
        "unused rotary tables": (2, length, head // 2),
    }
    arrays = {}
    for name, shape in shapes.items():
        arrays[name], values = values[: np.prod(shape)].reshape(shape), values[np.prod(shape) :]
    assert vocabulary > 0 and not len(values), "a positive vocabulary means tied embeddings, and nothing follows"
    config = ModelConfig(width, layers, heads, kv_heads, mlp_width, vocabulary, length, mlp="swiglu", remat="none")
    return config, arrays


def halves_from_pairs(matrix, head):
    """Rotary embedding over pairs (2i, 2i + 1) as one over halves (i, i + K/2): a permutation within each head."""
    layers, out, width = matrix.shape
    pairs = matrix.reshape(layers, out // head, head // 2, 2, width)
    return pairs.swapaxes(2, 3).reshape(layers, out, width)


def as_weights(config, arrays):
    def kernel(matrix):
        return {"kernel": matrix.swapaxes(-1, -2)}

    return {
        "embed_tokens": {"embedding": arrays["embed"]},
        "layers": {
            "input_layernorm": {"scale": arrays["attention_norm"]},
            "self_attn": {
                "q_proj": kernel(halves_from_pairs(arrays["q"], config.head_dim)),
                "k_proj": kernel(halves_from_pairs(arrays["k"], config.head_dim)),
                "v_proj": kernel(arrays["v"]),
                "o_proj": kernel(arrays["o"]),
            },
            "post_attention_layernorm": {"scale": arrays["mlp_norm"]},
            "mlp": {
                "gate_proj": kernel(arrays["gate"]),
                "up_proj": kernel(arrays["up"]),
                "down_proj": kernel(arrays["down"]),
            },
        },
        "norm": {"scale": arrays["norm"]},
        "lm_head": kernel(arrays["embed"]),
    }


def load():
    """The config, our weights, the file's own arrays, and a continuation by a float64 reference."""
    config, arrays = read_llama2c(STORIES / "stories260K.bin")
    golden = json.loads((STORIES / "stories260K.golden.json").read_text())
    return config, jax.tree.map(jnp.asarray, as_weights(config, arrays)), arrays, golden
