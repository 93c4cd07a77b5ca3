"""Rotary embedding of a part of every head, and learned positions that don't begin with the first row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.config import ConfigError
from jaxstab.model.config import ModelConfig
from jaxstab.model.placements import PlacementConfig
from jaxstab.model.positions import rotary_tables, rotate
from jaxstab.model.transformer import Transformer, read_table
from tests.model.test_transformer import random_weights

SIZES = {"width": 16, "layers": 2, "heads": 2, "vocabulary": 19, "max_length": 6, "remat": "none"}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 19, (2, 6)))


def test_what_is_not_rotated_stays_and_the_rest_is_a_smaller_head():
    x_BTHK = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    rotated = rotate(x_BTHK, rotary_tables(5, 2, 100.0))
    np.testing.assert_array_equal(rotated[..., 2:], x_BTHK[..., 2:])
    pairs = np.asarray(x_BTHK[..., 0] + 1j * x_BTHK[..., 1], np.complex128)
    turned = pairs * np.exp(1j * np.arange(5))[:, None]
    np.testing.assert_allclose(rotated[..., 0] + 1j * np.asarray(rotated[..., 1]), turned, rtol=1e-5, atol=1e-6)


def test_an_offset_reads_later_rows():
    shifted = ModelConfig(**SIZES, positions="learned", position_offset=2)
    weights = random_weights(shifted)
    plain = ModelConfig(**SIZES, positions="learned")
    cut = weights | {"embed_positions": {"embedding": weights["embed_positions"]["embedding"][2:]}}
    logits = [Transformer(c).apply({"params": w}, TOKENS) for c, w in ((shifted, weights), (plain, cut))]
    np.testing.assert_array_equal(*logits)


def test_heads_of_a_size_of_their_own():
    table = read_table(ModelConfig(**SIZES, head_size=6))
    assert table["layers"]["self_attn"]["q_proj"]["kernel"].shape == (2, 16, 12)
    assert table["layers"]["self_attn"]["o_proj"]["kernel"].shape == (2, 12, 16)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rotary_fraction": 0.4}, "is 3 entries"),
        ({"rotary_fraction": 0.1}, "is 0 entries"),
        ({"qk_norm_joint": True}, "no effect without model.qk_norm"),
        ({"parallel": True, "norm_placement": PlacementConfig("post")}, "model.norm_placement.method=pre, not post"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        ModelConfig(**SIZES, **changes)
