"""Logits from a cache of keys and values are those of a pass over everything."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.data import segment_ids
from jaxstab.initialize import draw, he, scaled
from jaxstab.model.cache import decode, prefill
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EmbeddingConfig
from jaxstab.model.loss import output_logits
from jaxstab.model.placements import PLACEMENTS, PlacementConfig
from jaxstab.model.transformer import Transformer, read_table

BASE = ModelConfig(width=16, layers=3, heads=4, vocabulary=11, max_length=12, remat="none")
VARIANTS = {
    "grouped heads": {"kv_heads": 2},
    "one key head, swiglu": {"kv_heads": 1, "mlp": "swiglu"},
    "learned positions, biases": {"positions": "learned", "bias": True, "norm": "layernorm"},
    "qk norm, caps": {"qk_norm": True, "attention_softcap": 5.0, "logits_softcap": 3.0},
    "offset positions, joint qk norm": {
        "positions": "learned",
        "position_offset": 2,
        "qk_norm": True,
        "qk_norm_joint": True,
    },
    "partial rotary, parallel branches": {"rotary_fraction": 0.5, "parallel": True},
    "tied, rematerialised": {"tie_embeddings": True, "remat": "full"},
    "documents": {"mask_documents": True},
    "bfloat16": {"dtype": "bfloat16"},
    **{f"placement {name}": {"norm_placement": PlacementConfig(method=name)} for name in PLACEMENTS},
    "embedding norm": {"embedding": EmbeddingConfig(method="layer_norm")},
}
TOKENS = np.random.default_rng(0).integers(1, 11, (3, 12)).astype(np.int32)
TOKENS[0, 3], TOKENS[2, 7], END = 0, 0, 0
LENGTHS = np.array([2, 5, 4], np.int32)  # of the prompts


def cached_logits(model, weights, segments):
    """The logits of every token after the prompts, `[B, T, V]`, row by row at places of its own; NaN before."""

    def logits_of(hidden):
        return output_logits(hidden, weights["lm_head"]["kernel"], model.config.logits_softcap)

    prompts = np.where(np.arange(5) < LENGTHS[:, None], TOKENS[:, :5], 7)  # 7 is padding, which must not matter
    hidden, cache = prefill(model, weights, prompts, 12, None if segments is None else segments[:, :5])
    rows, logits = np.arange(3), np.full((3, 12, 11), np.nan)
    logits[rows, LENGTHS - 1] = logits_of(hidden)[rows, LENGTHS - 1]
    step = jax.jit(lambda cache, tokens, places: decode(model, weights, cache, tokens, places, segments))
    for count in range(12 - LENGTHS.max()):
        places = LENGTHS + count
        hidden, cache = step(cache, TOKENS[rows, places], places)
        logits[rows, places] = logits_of(hidden)
    return logits


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_logits_are_those_of_a_whole_pass(name):
    config = dataclasses.replace(BASE, **VARIANTS[name])
    weights = draw(jax.random.key(0), scaled(read_table(config), he()))
    # Far from their init, so that norms, gates and biases are no ones and zeros.
    weights = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), weights)
    segments = segment_ids(TOKENS, END) if config.mask_documents else None
    model = Transformer(config)
    hidden = jax.jit(lambda: model.apply({"params": weights}, TOKENS, segments, method="hidden"))()
    whole = output_logits(hidden, weights["lm_head"]["kernel"], config.logits_softcap)

    cached = cached_logits(model, weights, segments)

    known = ~np.isnan(cached[..., 0])
    assert known.sum() == 3 * 8
    tolerance = 2e-2 if config.dtype == "bfloat16" else 2e-5
    np.testing.assert_allclose(cached[known], whole[known], atol=tolerance * float(jnp.abs(whole).max()))
