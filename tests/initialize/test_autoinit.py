"""AutoInit: what matrices read by rule, against integrals of SciPy and against forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from jaxstab.config import build_method
from jaxstab.initialize import autoinit, draw, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EMBEDDINGS, EmbeddingConfig
from jaxstab.model.placements import PLACEMENTS, PlacementConfig
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.reparam import linen_moments
from jaxstab.table import rows

N = 3


def model_config(**changes):
    placement = PlacementConfig(method=changes.pop("placement", "pre"))
    sizes = {"width": 8, "layers": N, "heads": 2, "vocabulary": 11, "max_length": 8, "remat": "none"}
    return ModelConfig(norm_placement=placement, **(sizes | changes))


def reads(**changes):
    return {row.role: row.reads() for row in rows(read_table(model_config(**changes))) if row.is_matrix}


@pytest.mark.parametrize(
    ("mlp", "function"),
    [
        ("gelu", lambda z: z * stats.norm.cdf(z)),
        ("relu", lambda z: np.maximum(z, 0)),
        ("relu2", lambda z: np.maximum(z, 0) ** 2),
        ("swiglu", lambda z: z * special.expit(z)),
    ],
)
def test_activations_have_the_mean_square_of_scipy_s_integral(mlp, function):
    expected, _ = integrate.quad(lambda z: function(z) ** 2 * stats.norm.pdf(z), -12, 12)
    np.testing.assert_allclose(reads(mlp=mlp)["down_proj"], expected, rtol=1e-5)


def test_a_clamp_and_gates_count():
    square, _ = integrate.quad(lambda z: np.clip(z, -0.5, 0.5) ** 2 * stats.norm.pdf(z), -12, 12)
    silu, _ = integrate.quad(
        lambda z: (np.clip(z, -0.5, 0.5) * special.expit(np.clip(z, -0.5, 0.5))) ** 2 * stats.norm.pdf(z), -12, 12
    )
    np.testing.assert_allclose(reads(mlp="swiglu", mlp_clamp=0.5)["down_proj"], square * silu, rtol=1e-4)
    gate, _ = integrate.quad(lambda z: special.expit(z) ** 2 * stats.norm.pdf(z), -12, 12)
    np.testing.assert_allclose(reads(attention_gate="head")["o_proj"], gate, rtol=1e-5)


def test_without_norms_variances_add_up():
    found = reads(placement="none")
    assert found["q_proj"] == found["v_proj"] == (1, 3, 5) and found["up_proj"] == (2, 4, 6)
    assert found["lm_head"] == 7 and found["o_proj"] == 1
    assert reads(placement="none", positions="learned")["q_proj"] == (2, 4, 6)
    np.testing.assert_allclose(reads(placement="pre_scaled")["q_proj"], 1 / np.arange(1, N + 1), rtol=1e-6)
    normed = [reads()["q_proj"], reads()["lm_head"], reads(placement="post")["lm_head"]]
    np.testing.assert_allclose(normed, 1, rtol=1e-12)


def test_what_stands_in_a_norm_s_place_squashes():
    squashed, _ = integrate.quad(lambda z: np.tanh(0.5 * z) ** 2 * stats.norm.pdf(z), -12, 12)
    np.testing.assert_allclose(reads(norm="dyt")["q_proj"][0], squashed, rtol=1e-5)
    assert reads(norm="dyt")["lm_head"] > reads(norm="dyt")["q_proj"][-1] > squashed, "the shortcut grows"


def test_a_parallel_mlp_reads_what_attention_does():
    changes = {"parallel": True, "norm": "derf"}
    assert reads(**changes)["up_proj"] == reads(**changes)["q_proj"]


MODELS = [{"placement": placement} for placement in PLACEMENTS] + [
    {"placement": "pre", "norm": "dyt"},
    {"placement": "post", "norm": "derf"},
    {"placement": "none", "embedding": EmbeddingConfig(method="scaled")},
    {"placement": "mix", "embedding": EmbeddingConfig(method="layer_norm")},
]


@pytest.mark.parametrize("changes", MODELS, ids=lambda changes: "-".join(map(str, changes.values()))[:40])
def test_every_matrix_puts_out_unit_variance(changes):
    """Of sequences of one token, whose attention is the value itself."""
    config = model_config(**changes, width=512, heads=4, vocabulary=256, mlp="relu")
    embedding = build_method(config.embedding, EMBEDDINGS)
    table = scaled(read_table(config), autoinit(), embedding=embedding.multiplier)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (256, 1)))
    moments = linen_moments(Transformer(config), draw(jax.random.key(1), table), tokens)
    for row in rows(table):
        if row.is_matrix and row.role != "embed_tokens":
            squares = np.mean(moments[row.path].variance + moments[row.path].mean ** 2, axis=-1)
            np.testing.assert_allclose(squares, np.ones_like(squares), atol=0.12, err_msg=row.path)
