"""The initial draw: the standard deviations asked for, the same weights for a seed on every mesh."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxstab import scale
from jaxstab.initialize import draw, he, scaled, small
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import unit
from jaxstab.model.transformer import read_table
from jaxstab.table import Row

WIDTH, LAYERS, MLP = 64, 3, 96
MODEL = ModelConfig(
    width=WIDTH, layers=LAYERS, heads=8, kv_heads=4, mlp_width=MLP, vocabulary=80, max_length=40, mlp="swiglu",
    positions="learned", bias=True,
)  # fmt: skip

HE = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"), 1 / math.sqrt(WIDTH)),
    **dict.fromkeys(("embed_tokens", "embed_positions"), 1 / math.sqrt(WIDTH)),
    "o_proj": 1 / math.sqrt(WIDTH) / math.sqrt(2 * LAYERS),
    "down_proj": math.sqrt(2 / MLP) / math.sqrt(2 * LAYERS),
}
SMALL = dict.fromkeys(HE, math.sqrt(2 / (5 * WIDTH)))
SMALL |= dict.fromkeys(("o_proj", "down_proj"), math.sqrt(2 / (5 * WIDTH)) / math.sqrt(2 * LAYERS))


def drawn(seed=0, table=None):
    table = scaled(read_table(MODEL), he()) if table is None else table
    return draw(jax.random.key(seed), table)


@pytest.mark.parametrize(("backbone", "expected"), [(he(), HE), (small(), SMALL)], ids=["he", "small"])
def test_every_matrix_is_normal_with_the_scale_s_standard_deviation(backbone, expected):
    table = scaled(read_table(MODEL), backbone)

    def check(row, weight):
        if not row.is_matrix:
            return
        for layer in weight if row.stacked else [weight]:
            values = np.asarray(layer).ravel() / expected[row.role]
            # five standard errors of a sample's mean and standard deviation
            assert abs(values.mean()) < 5 / math.sqrt(values.size), row.path
            assert abs(values.std() - 1) < 5 / math.sqrt(2 * values.size), row.path
            assert stats.kstest(values, "norm").pvalue > 1e-4, row.path

    jax.tree.map(check, table, drawn(table=table))


def test_unit_embedding_has_standard_deviation_one_and_keeps_what_is_stored():
    row = scaled(read_table(MODEL), small(), embedding=unit().multiplier)["embed_tokens"]["embedding"]
    assert row.std == 1.0
    assert row.std / row.multiplier == pytest.approx(SMALL["embed_tokens"])
    weights = drawn(table=scaled(read_table(MODEL), small(), embedding=unit().multiplier))
    assert np.std(weights["embed_tokens"]["embedding"]) == pytest.approx(1, rel=0.05)
    assert np.std(weights["embed_positions"]["embedding"]) == pytest.approx(SMALL["embed_positions"], rel=0.1)


def test_norms_start_at_one_and_biases_at_zero():
    values = {"norm": 1.0, "bias": 0.0}

    def check(row, weight):
        assert weight.dtype == jnp.float32 and weight.shape == row.shape
        assert row.is_matrix or np.all(weight == values[row.role])

    jax.tree.map(check, scaled(read_table(MODEL), he()), drawn())


def test_a_scale_may_give_every_layer_its_own():
    table = scaled(read_table(MODEL), lambda row: tuple(0.1 * 2**n for n in range(row.layers)) if row.stacked else 1.0)
    up = drawn(table=table)["layers"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_allclose(np.std(up, axis=(1, 2)), [0.1, 0.2, 0.4], rtol=0.05)


def correlation(one, other):
    one, other = np.ravel(one), np.ravel(other)
    return abs(np.vdot(one, other)) / np.linalg.norm(one) / np.linalg.norm(other)


def test_seeds_layers_and_matrices_are_independent():
    attention, another = drawn(0)["layers"]["self_attn"], drawn(1)["layers"]["self_attn"]
    q, k, v = (attention[name]["kernel"] for name in ("q_proj", "k_proj", "v_proj"))
    assert correlation(q, another["q_proj"]["kernel"]) < 0.05
    assert correlation(q[0], q[1]) < 0.1
    assert correlation(k, v) < 0.05
    jax.tree.map(np.testing.assert_array_equal, drawn(0), drawn(0))


def test_a_parameter_s_draw_does_not_depend_on_what_else_the_model_has():
    bare = dataclasses.replace(MODEL, bias=False, mlp="gelu", positions="rotary")
    other = drawn(table=scaled(read_table(bare), he()))
    full = drawn()
    for path in ("self_attn", "mlp"):
        for name, weights in other["layers"][path].items():
            np.testing.assert_array_equal(weights["kernel"], full["layers"][path][name]["kernel"])


def test_a_mesh_draws_bitwise_what_one_device_draws():
    table = scaled(read_table(MODEL), he())
    shardings = scale.shardings(table, scale.make_mesh(scale.MeshConfig(replica=2, fsdp=2, tensor=2)))
    sharded = jax.jit(lambda: draw(jax.random.key(0), table), out_shardings=shardings)()
    assert not sharded["lm_head"]["kernel"].is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, sharded, jax.jit(lambda: draw(jax.random.key(0), table))())


def test_tied_embeddings_are_one_draw():
    table = scaled(read_table(dataclasses.replace(MODEL, tie_embeddings=True)), he(), embedding=unit().multiplier)
    weights = drawn(table=table)
    embedding, head = weights["embed_tokens"]["embedding"], weights["lm_head"]["kernel"]
    np.testing.assert_allclose(head, embedding.T / math.sqrt(WIDTH), rtol=1e-6)


def test_scales_are_functions_of_a_row_of_any_model():
    row = Row("w", "down_proj", (96, 64), (None, None), stacked=False, depth=8)
    assert he()(row) == pytest.approx(math.sqrt(2 / 96 / 16))
    assert small()(row) == pytest.approx(math.sqrt(2 / (5 * 64) / 16))
    assert he()(row.replace(role="k_proj", shape=(64, 16))) == pytest.approx(1 / 8)
