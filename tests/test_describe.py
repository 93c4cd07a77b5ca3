"""The paper's models: their exact sizes, standard deviations and settings, without allocating a weight.

Nishida et al. 2024, Tables 1, 2, 3, 10 and 11.
"""

import importlib.util
import math
import time
from pathlib import Path

import jax
import pytest

from jaxstab.config import ConfigError, to_config_dict
from jaxstab.table import count, rows
from jaxstab.train.config import default_config, resolve
from jaxstab.train.describe import COLUMNS, describe, show, total
from jaxstab.train.program import build
from jaxstab.train.setup import effective_table

spec = importlib.util.spec_from_file_location("wesar", Path(__file__).parents[1] / "configs" / "wesar.py")
wesar = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wesar)

# width, blocks, heads, exact number of weights, as Table 2 prints it
SIZES = {
    "130m": (768, 12, 12, 134_105_856, "134.1M"),
    "1.3b": (2048, 24, 16, 1_339_131_904, "1,339.1M"),
    "13b": (5120, 40, 40, 12_911_006_720, "12,911.0M"),
}
METHODS = ("wesar", "small", "he", "wesar_small", "wesar_fixed")
SETTINGS = {"rapid": (2**20, 1e-3, 100), "stable": (2**22, 5e-4, 2000)}
SIGMA = math.sqrt(4e-5)


def config_of(size, method="wesar", setting="rapid"):
    return resolve(wesar.get_config(f"size={size},method={method},setting={setting}"))


def table_1(method, d, n):
    """(what stands in the model, what is stored) by role."""
    he = {
        "embed_tokens": math.sqrt(1 / d),
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "up_proj", "lm_head"), math.sqrt(1 / d)),
        "o_proj": math.sqrt(1 / (2 * n * d)),
        "down_proj": math.sqrt(2 / (8 * n * d)),
    }
    small = {role: math.sqrt(2 / (5 * d)) for role in he}
    small["o_proj"] = small["down_proj"] = math.sqrt(2 / (10 * n * d))
    backbone = small if method.endswith("small") else he
    effective = backbone | {"embed_tokens": 1.0}
    return {role: (effective[role], SIGMA if method.startswith("wesar") else backbone[role]) for role in backbone}


def cells(config):
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in describe(config)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", SIZES)
def test_standard_deviations_are_table_1_s(size, method):
    width, layers, *_ = SIZES[size]
    config = config_of(size, method)
    expected = table_1(method, width, layers)
    used = {row.role: row.std for row in jax.tree.leaves(effective_table(config)) if row.is_matrix}
    assert used == pytest.approx({role: std for role, (std, _) in expected.items()}, rel=1e-12)
    rows = [row for row in cells(config).values() if row["role"] in expected]
    assert sorted(row["role"] for row in rows) == sorted(expected)
    for row in rows:
        effective, stored = expected[row["role"]]
        assert float(row["effective std"]) == pytest.approx(effective, rel=1e-3)
        assert float(row["stored std"]) == pytest.approx(stored, rel=1e-3)
        gate = 1.0 if row["gate"] == "-" else float(row["gate"])
        assert gate == pytest.approx(effective / stored, rel=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_the_totals_are_the_paper_s(size, capsys):
    _, layers, _, weights, printed = SIZES[size]
    assert total(config_of(size, "small")) == total(config_of(size, "he")) == weights
    gates = 6 * layers + 2  # one per matrix
    for method in ("wesar", "wesar_small", "wesar_fixed"):
        assert total(config_of(size, method)) == weights + gates
        show(config_of(size, method))
        assert capsys.readouterr().out.rstrip().endswith(f"{weights + gates:,} parameters ({printed})")


def test_the_largest_is_described_in_seconds_and_allocates_nothing():
    before = len(jax.live_arrays())
    start = time.perf_counter()
    rows = describe(config_of("13b"))
    assert time.perf_counter() - start < 5
    assert len(jax.live_arrays()) == before
    assert sum(math.prod(int(n) for n in row[2].replace("scalar", "1").split("x")) for row in rows) == 12_911_006_962


def test_a_row_says_everything(capsys):
    config = config_of("1.3b")
    rows = cells(config)
    down = rows["layers/mlp/down_proj/kernel/weight"]
    assert list(down.values()) == [
        "layers/mlp/down_proj/kernel/weight",
        "down_proj",
        "24x8192x2048",
        "0.006325",
        "0.3566",
        "0.002255",
        "0.01",
        ". . fsdp",
    ]
    gate = rows["layers/mlp/down_proj/kernel/gate"]
    assert (gate["role"], gate["shape"], gate["gate"], gate["decay"]) == ("gate", "24", "0.3566", "-")
    assert (rows["norm/scale"]["decay"], rows["norm/scale"]["gate"]) == ("-", "-")
    assert float(rows["embed_tokens/embedding/weight"]["gate"]) == pytest.approx(158.1, rel=1e-3)
    show(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "FLOPs per token at length 2048: 6N 7.641e+09, causal 8.245e+09, full 8.849e+09"
    assert lines[0].split()[:3] == ["path", "role", "shape"]
    assert all(any(line.startswith(path + " ") for line in lines) for path in rows)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", SIZES)
def test_every_model_of_the_paper_builds_with_its_settings(size, method, setting):
    width, layers, heads, weights, _ = SIZES[size]
    config = config_of(size, method, setting)
    before = len(jax.live_arrays())
    program = build(config)
    assert len(jax.live_arrays()) == before
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.abstract_state.raw))
    assert stored == count(program.setup.reparam.table) == weights + (6 * layers + 2) * method.startswith("wesar")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(program.abstract_state.raw)} == {"float32"}

    model, train, optimizer = config.model, config.train, config.optimizer
    tokens, rate, warmup = SETTINGS[setting]
    assert (model.width, model.layers, model.heads) == (width, layers, heads)
    assert (model.max_length, model.vocabulary, model.dtype) == (2048, 32000, "bfloat16")
    assert (model.norm, model.norm_eps, model.positions, model.mlp) == ("rmsnorm", 1e-5, "rotary", "gelu")
    assert not model.bias and not model.tie_embeddings
    assert (train.batch_size * config.data.length, optimizer.learning_rate, optimizer.warmup) == (tokens, rate, warmup)
    assert 0 <= 30e9 - train.steps * tokens < tokens
    assert (train.z_loss, optimizer.weight_decay, optimizer.clip.global_norm.max_norm) == (1e-4, 0.01, 1.0)
    assert (optimizer.rule.adamw.b1, optimizer.rule.adamw.b2) == (0.9, 0.95)
    assert config.reparam.wesar.sigma == pytest.approx(SIGMA)
    assert config.reparam.wesar.trainable_gates == (method != "wesar_fixed")
    assert resolve(to_config_dict(config)) == config


@pytest.mark.parametrize("mesh", [{"fsdp": -1}, {"tensor": -1}, {"fsdp": 2, "tensor": -1}, {"fsdp": 3}, {"tensor": 8}])
def test_the_splits_are_those_of_the_run(mesh, capsys):
    """Of the state that is built on the mesh, an axis that it doesn't divide included."""
    values = default_config()
    values.model.update(width=24, layers=2, heads=4, mlp_width=36, vocabulary=257, max_length=8)
    values.data.length, values.train.batch_size = 8, 24
    values.mesh.update(mesh)
    values.reparam.method = "wesar"
    config = resolve(values)
    state = build(config).abstract_state
    for row, leaf in zip(rows(build(config).setup.stored_table), jax.tree.leaves(state.raw), strict=True):
        split = leaf.sharding.shard_shape(leaf.shape)
        shown = cells(config)[row.path]["sharding"].split()
        if row.shape:
            assert [part < whole for part, whole in zip(split, row.shape, strict=True)] == [
                name != "." for name in shown
            ]
    show(config)
    sizes = jax.tree.leaves(state.raw)[0].sharding.mesh.shape
    line = f"mesh: replica 1, fsdp {sizes['fsdp']}, tensor {sizes['tensor']}, sequence 1"
    assert line in capsys.readouterr().out


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"size='7b' is not one of: 130m, 1\.3b, 13b"):
        wesar.get_config("size=7b")
