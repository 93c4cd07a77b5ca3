"""Planted faults: drawn from a seed, planted where they say, and judged by rules that a wrong answer fails."""

import json

import jax
import numpy as np
import pytest

from benchmarks.planted import draw
from benchmarks.planting.faults import FAULTS
from benchmarks.planting.judging import WORDS, alarmed, verdict
from jaxstab.config import from_flat
from jaxstab.table import path_of
from jaxstab.train.config import Config
from jaxstab.train.program import build

GROUND = {"model.layers": 3, "model.mlp": "gelu", "model.tie_embeddings": False, "train.steps": 250}
GROUND |= {"model.heads": 4, "model.kv_heads": 2, "optimizer.rule.method": "adamw", "optimizer.learning_rate": 1e-3}


def test_a_draw_follows_from_its_seed_and_has_every_fault_and_a_third_healthy():
    one, same, other = draw(3, 60), draw(3, 60), draw(4, 60)
    assert one == same != other
    assert {run["fault"] for run in one} == {*FAULTS, "none"} == {*WORDS, "none"}
    assert sum(run["fault"] == "none" for run in one) == 20
    json.dumps(one)


@pytest.fixture(scope="module")
def state():
    keys = {"model.width": 16, "model.heads": 4, "model.kv_heads": 2, "model.layers": 3, "model.vocabulary": 31}
    return build(from_flat(Config, keys)).init(0)


@pytest.mark.parametrize("name", ["matrix", "rows", "entry", "gain", "moment", "resumed without moments"])
def test_a_fault_of_the_state_changes_its_place_alone(name, state, tmp_path):
    fault = {"fault": name, **FAULTS[name].draw(np.random.default_rng(0), GROUND)}
    (tmp_path / "frequent.json").write_text("[3, 4, 5, 6, 7]")
    planting = FAULTS[name].plant(fault, tmp_path)
    assert planting.state(fault["first"] - 1, state) is state
    if name in ("moment", "resumed without moments"):
        state = state._replace(optimizer=jax.tree.map(lambda x: x + 1, state.optimizer))
    after = planting.state(fault["first"], state)
    changed = {
        path_of(path)
        for (path, before), now in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(after), strict=True)
        if not np.array_equal(before, now)
    }
    whole = {"matrix": 1, "rows": 1, "entry": 1, "gain": 1}.get(name)
    assert changed and (whole is None or len(changed) == whole)
    assert all(path.startswith("raw" if whole else "optimizer") for path in changed)


def test_an_answer_is_right_by_its_word_place_and_step():
    fault = {"fault": "matrix", "role": "q_proj", "layer": 2, "first": 100, "last": 100}
    said = {"cause": WORDS["matrix"][0], "role": "q_proj", "layer": 2, "head": None, "step": 101}
    assert verdict(fault, {"causes": [said]}) == "right"
    assert verdict(fault, {"causes": [said | {"layer": 1}]}) == "near"
    assert verdict(fault, {"causes": [said | {"step": 120}]}) == "near"
    assert verdict(fault, {"causes": [said | {"cause": "data"}]}) == "near"  # the place, by another name
    assert verdict(fault, {"causes": [said | {"cause": "data", "role": None}]}) == "misleading"
    assert verdict(fault, {"causes": [{"cause": "none"}]}) == "silent"
    assert verdict(fault, {"causes": [], "error": "KeyError"}) == "fell over"
    assert alarmed({"causes": [said]}) and not alarmed({"causes": [{"cause": "none"}]})
