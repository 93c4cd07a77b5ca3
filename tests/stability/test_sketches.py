"""Sketches against NumPy in float64, and the account that they give of an optimizer's step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import stability
from jaxstab.optimize import OptimizerConfig, build
from jaxstab.optimize.chain import Hypers, RuleConfig
from jaxstab.reparam import reparameterize, weight_norm
from jaxstab.stability.sketches import moments, sketch
from jaxstab.table import named_rows, read

SHAPES = {"embed": (11, 6), "layers": {"up": (3, 6, 8), "norm": (3, 6)}, "norm": (6,), "head": (6, 11)}
ROLES = {"embed": "embed_tokens", "up": "up_proj", "norm": "norm", "head": "lm_head"}


def drawn(shapes, seed=0):
    dice = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return tree.unflatten([jnp.asarray(dice.normal(size=shape), jnp.float32) for shape in leaves])


PARAMETERS = drawn(SHAPES)
TABLE = read(PARAMETERS, ROLES)


def rows_and_arrays():
    flat = dict(zip(named_rows(TABLE), jax.tree.leaves(PARAMETERS), strict=True))
    return [(name, named_rows(TABLE)[name], flat[name]) for name in named_rows(TABLE)]


@pytest.mark.parametrize(
    ("name", "row", "x"), rows_and_arrays(), ids=lambda each: each if isinstance(each, str) else ""
)
def test_a_sketch_moves_by_one_entry_s_change_whichever_it_is(name, row, x):
    """The change of one entry moves it by just that, either way, so that no entry is without a sign."""
    before = np.float64(sketch(row, x))
    for at in np.ndindex(x.shape):
        moved = np.float64(sketch(row, x.at[at].add(0.5))) - before
        layer = at[0] if row.stacked else ()
        np.testing.assert_allclose(np.abs(moved[layer]), 0.5, atol=1e-5)
        others = np.delete(moved, layer) if row.stacked else []
        assert not np.any(others)


def test_a_sketch_is_as_large_as_the_norm_in_the_mean():
    row = named_rows(TABLE)["up_proj"].replace(shape=(2000, 6, 8))
    x = jnp.asarray(np.random.default_rng(1).normal(size=row.shape), jnp.float32)
    np.testing.assert_allclose(jnp.mean(sketch(row, x) ** 2), 48, rtol=0.1)


@pytest.mark.parametrize("rule", ["adamw", "stable_adamw", "muon"])
def test_the_account_of_two_steps_closes(rule):
    """What a step leaves is what the next begins with, and the moments are those that its gradient gives."""
    reparam = reparameterize(TABLE, weight_norm())
    raw, _ = reparam.init(PARAMETERS)
    config = OptimizerConfig(rule=RuleConfig(method=rule), warmup=0)
    optimizer = build(config, reparam.table, 10)
    state, accounts = optimizer.update.init(raw), []
    for seed in range(3):
        gradient = jax.tree.map(lambda x, seed=seed: jnp.sin(7 * x + seed), raw)
        updates, new_state = optimizer.update.update(gradient, state, raw, hypers=Hypers(0.1, 0.1))
        new_raw = optax.apply_updates(raw, updates)
        accounts.append(stability.state_statistics(reparam.table, raw, new_raw, state, gradient))
        raw, state = new_raw, new_state
    first, second = accounts[1:]
    options = getattr(config.rule, rule)
    named = named_rows(reparam.table)
    assert set(named) == {name.removeprefix("stability/sketch/mu/") for name in first if "sketch/mu/" in name}
    for name, row in named.items():
        part = {of: (first[f"stability/sketch/{of}/{name}"], second[f"stability/sketch/{of}/{name}"]) for of in
                ("weight", "weight_after", "mu", "gradient")}  # fmt: skip
        np.testing.assert_allclose(part["weight_after"][0], part["weight"][1], atol=1e-5)
        b1 = options.momentum if rule == "muon" and f"stability/nu_mean/{name}" not in first else options.b1
        expected = b1 * part["mu"][0] + (1 - b1) * part["gradient"][0]
        np.testing.assert_allclose(part["mu"][1], expected, atol=1e-5)
        assert row.stacked is (part["mu"][0].shape == (3,))


def test_moments_are_found_by_where_they_lie():
    state = OptimizerConfig(rule=RuleConfig(method="muon"), warmup=0)
    optimizer = build(state, TABLE, 10)
    of = moments(TABLE, optimizer.update.init(PARAMETERS))
    assert set(of["mu"]) == set(named_rows(TABLE)) == {"embed_tokens", "up_proj", "layers/norm", "norm", "lm_head"}
    assert set(of["nu"]) == set(named_rows(TABLE)) - {"up_proj"}, "Muon has no second moment of a hidden matrix"


def test_vectors_have_the_norms_of_what_is_stored_of_their_gradients_and_updates():
    gradient, update = drawn(SHAPES, 1), drawn(SHAPES, 2)
    measured = stability.vector_statistics(TABLE, PARAMETERS, gradient, update)
    for name, tree in (("norm", PARAMETERS), ("grad_norm", gradient), ("update_norm", update)):
        expected = np.linalg.norm(np.float64(tree["layers"]["norm"]), axis=-1)
        np.testing.assert_allclose(measured[f"stability/vector_{name}/layers/norm"], expected, rtol=1e-6)
    assert len(measured) == 6
