"""The table: what is known of every parameter without its values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import table
from jaxstab.config import UserError
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import read_table

MODEL = ModelConfig(width=8, layers=3, heads=4, kv_heads=2, mlp_width=20, vocabulary=17, max_length=6)


def by_path(rows):
    return {row.path: row for row in table.rows(rows)}


def test_the_model_s_rows():
    rows = by_path(read_table(MODEL))
    assert {path: (row.role, row.shape, row.axes) for path, row in rows.items()} == {
        "embed_tokens/embedding": ("embed_tokens", (17, 8), ("vocab", "embed")),
        "layers/input_layernorm/scale": ("norm", (3, 8), ("layers", "embed")),
        "layers/self_attn/q_proj/kernel": ("q_proj", (3, 8, 8), ("layers", "embed", "heads")),
        "layers/self_attn/k_proj/kernel": ("k_proj", (3, 8, 4), ("layers", "embed", "kv_heads")),
        "layers/self_attn/v_proj/kernel": ("v_proj", (3, 8, 4), ("layers", "embed", "kv_heads")),
        "layers/self_attn/o_proj/kernel": ("o_proj", (3, 8, 8), ("layers", "heads", "embed")),
        "layers/post_attention_layernorm/scale": ("norm", (3, 8), ("layers", "embed")),
        "layers/mlp/up_proj/kernel": ("up_proj", (3, 8, 20), ("layers", "embed", "mlp")),
        "layers/mlp/down_proj/kernel": ("down_proj", (3, 20, 8), ("layers", "mlp", "embed")),
        "norm/scale": ("norm", (8,), ("embed",)),
        "lm_head/kernel": ("lm_head", (8, 17), ("embed", "vocab")),
    }
    assert {row.depth for row in rows.values()} == {3}
    assert {path for path, row in rows.items() if row.stacked} == {path for path in rows if path.startswith("layers/")}


def test_options_add_rows():
    full = ModelConfig(
        **{**vars(MODEL), "mlp": "swiglu", "bias": True, "positions": "learned", "norm": "layernorm", "layers": 2}
    )
    rows = by_path(read_table(full))
    assert rows["layers/mlp/gate_proj/kernel"].role == "gate_proj"
    assert rows["embed_positions/embedding"].axes == ("positions", "embed")
    biases = {path: row.axes for path, row in rows.items() if row.role == "bias"}
    assert biases["layers/self_attn/o_proj/bias"] == ("layers", "embed")
    assert biases["layers/self_attn/k_proj/bias"] == ("layers", "kv_heads")
    assert biases["norm/bias"] == ("embed",) and len(biases) == 10
    assert "lm_head/bias" not in rows


def test_derived_facts():
    rows = by_path(read_table(MODEL))
    up, down = rows["layers/mlp/up_proj/kernel"], rows["layers/mlp/down_proj/kernel"]
    assert (up.fan_in, up.fan_out, up.width, up.layers, up.size) == (8, 20, 8, 3, 480)
    assert (down.fan_in, down.fan_out, down.width) == (20, 8, 8)
    assert {row.width for row in rows.values() if row.is_matrix} == {8}
    assert rows["lm_head/kernel"].layers == 0
    gate = up.gate((1.0, 2.0, 3.0))
    assert (gate.shape, gate.axes, gate.role, gate.value, gate.decay) == ((3,), ("layers",), "gate", (1.0, 2.0, 3.0), 0)
    assert rows["lm_head/kernel"].gate(2.0).shape == ()


def test_matrices_decay_and_vectors_start_at_their_value():
    for row in table.rows(read_table(MODEL)):
        assert row.decay == float(row.is_matrix)
        assert row.value == {"norm": 1.0, "bias": 0.0}.get(row.role)
        assert (row.learning_rate, row.eps, row.multiplier, row.std) == (1, 1, 1, None)


def test_the_count_is_that_of_the_model():
    d, layers, kv, mlp, vocabulary = 8, 3, 4, 20, 17
    block = 2 * d * d + 2 * d * kv + 2 * d * mlp + 2 * d
    assert table.count(read_table(MODEL)) == layers * block + 2 * vocabulary * d + d


def foreign():
    return {
        "tok": np.zeros((7, 4)),
        "blocks": [{"attn": {"w_q": np.zeros((4, 4))}, "ln": np.zeros(4)} for _ in range(2)],
        "out": jax.ShapeDtypeStruct((4, 7), jnp.float32),
    }


ROLES = {r"^tok$": "embed_tokens", r"w_q$": "q_proj", r"ln$": "norm", r"^out$": "lm_head"}


def test_a_tree_from_elsewhere_is_read_with_its_own_patterns():
    rows = by_path(table.read(foreign(), ROLES, depth=2))
    assert rows["blocks/1/attn/w_q"].role == "q_proj"
    assert rows["blocks/1/attn/w_q"].axes == (None, None)
    assert not any(row.stacked for row in rows.values())
    assert {row.depth for row in rows.values()} == {2}
    stacked = table.read({"body": {"w_q": np.zeros((5, 4, 4))}}, ROLES, stacked="^body/")
    assert (stacked["body"]["w_q"].layers, stacked["body"]["w_q"].depth) == (5, 5)


def test_the_first_pattern_counts():
    rows = table.read({"w_q": np.zeros((2, 2))}, {"w_q": "k_proj", "w_": "q_proj"})
    assert rows["w_q"].role == "k_proj"


def test_a_parameter_that_no_rule_covers_is_named():
    tree = foreign() | {"rel_bias": np.zeros((3, 2))}
    with pytest.raises(UserError, match=r"no role covers the parameter rel_bias \(3, 2\)"):
        table.read(tree, ROLES)


def test_an_unknown_role_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"parameter tok has the unknown role 'embedding'; roles: q_proj, .*gate"):
        table.read(foreign(), ROLES | {r"^tok$": "embedding"})


def test_results_by_role_are_for_matrices_and_name_a_second_one_by_its_path():
    rows = table.read(foreign(), ROLES, depth=2)
    found = table.by_role(lambda row, size: (row.path, size), rows, jax.tree.map(lambda row: row.size, rows))
    assert found == {
        "q_proj": ("blocks/0/attn/w_q", 16),
        "blocks/1/attn/w_q": ("blocks/1/attn/w_q", 16),
        "lm_head": ("out", 28),
        "embed_tokens": ("tok", 28),
    }


def test_a_standard_deviation_divides_per_layer():
    assert table.divided(None, 2.0) is None
    assert table.divided(3.0, 2.0) == 1.5
    assert table.divided((2.0, 4.0), 2.0) == (1.0, 2.0)
