"""Models of random weights, written as Hugging Face's classes are; that they are read as those read them, tests/parity
has against transformers."""

import json

import numpy as np
from safetensors.numpy import save_file

from jaxstab.config import from_flat
from jaxstab.exchange.families import FAMILIES
from jaxstab.exchange.weights import pieces, shape
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import read_table

SIZES = {"width": 16, "layers": 2, "heads": 2, "vocabulary": 257, "max_length": 16}
MODELS = {
    "llama": {"mlp": "swiglu", "kv_heads": 1, "mlp_width": 24},
    "qwen2": {"mlp": "swiglu", "kv_heads": 1},
    "yulanmini": {"mlp": "swiglu", "qkv_bias": True, "embedding.scaled.factor": 10.0},
    "qwen3": {"mlp": "swiglu", "kv_heads": 1, "head_size": 12},
    "olmo2": {"mlp": "swiglu"},
    "gemma2": {"mlp": "swiglu", "attention_softcap": 5.0, "tie_embeddings": True},
    "arcee": {"mlp": "relu2", "bias": True},
    "gpt2": {"mlp": "gelu_tanh", "tie_embeddings": True},
    "opt": {"mlp": "relu", "tie_embeddings": True},
    "gpt_neox": {"rotary_fraction": 0.25, "parallel": True},
}


def tensors_of(kind, seed=0, dtype=np.float32, **changes):
    """(family, model, {name: array})."""
    family = FAMILIES[kind]
    model = from_flat(ModelConfig, {**SIZES, **MODELS[kind], **family.ours, **changes})
    dice = np.random.default_rng(seed)
    listed = pieces(family, read_table(model))
    return family, model, {piece.name: (0.3 * dice.normal(size=shape(family, piece))).astype(dtype) for piece in listed}


def write(folder, kind="llama", shards=1, config=None, **options):
    """Writes a model into a new folder, in that many shards; `config` changes its config.json. Returns its tensors."""
    family, model, tensors = tensors_of(kind, **options)
    folder.mkdir(parents=True)
    theirs = {**family.config(model), "tie_word_embeddings": model.tie_embeddings, **(config or {})}
    (folder / "config.json").write_text(json.dumps(theirs))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    where = {name: f"model-{number % shards + 1:05}-of-{shards:05}.safetensors" for number, name in enumerate(tensors)}
    for shard in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return tensors
