"""learnable_multipliers: scales from 1 beside a matrix, or along its sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.initialize import draw, he, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import read_table
from jaxstab.reparam import learnable_multipliers, reparameterize
from jaxstab.table import rows

CONFIG = ModelConfig(width=8, layers=3, heads=2, vocabulary=11, max_length=8, remat="none")
TABLE = scaled(read_table(CONFIG), he())
SIDES = {"scalar": {"gate": ""}, "row": {"row": "i"}, "column": {"column": "j"}, "both": {"row": "i", "column": "j"}}


@pytest.mark.parametrize("shape", SIDES)
def test_values_and_gradients_are_the_formula_s(shape):
    with jax.enable_x64(True):
        rep = reparameterize(TABLE, learnable_multipliers(shape=shape))
        drawn = jax.tree.map(lambda x: x.astype(jnp.float64), draw(jax.random.key(0), TABLE))
        raw, state = rep.init(drawn)
        jax.tree.map(np.testing.assert_array_equal, rep.merge(raw, state), drawn)
        rng = np.random.default_rng(0)
        raw = jax.tree.map(lambda x: x + rng.normal(size=x.shape), raw)
        weights, pullback = jax.vjp(lambda raw: rep.effective(raw, state)[0], raw)
        delta = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), weights)
        (gradient,) = pullback(delta)
    for path, layers in ((("layers", "mlp", "down_proj", "kernel"), 3), (("lm_head", "kernel"), 1)):
        stored, used, cotangent, found = (at(tree, path) for tree in (raw, weights, delta, gradient))
        for layer in range(layers):
            one = (lambda x: x[layer]) if layers > 1 else (lambda x: x)  # noqa: B023
            weight, multipliers = one(stored["weight"]), {name: one(stored[name]) for name in SIDES[shape]}
            product = np.einsum(f"ij,{','.join(SIDES[shape].values())}->ij", weight, *multipliers.values())
            np.testing.assert_allclose(one(used), product)
            for name, side in SIDES[shape].items():
                others = {other: value for other, value in multipliers.items() if other != name}
                letters = ",".join(["ij", "ij", *(SIDES[shape][other] for other in others)])
                expected = np.einsum(f"{letters}->{side}", one(cotangent), weight, *others.values())
                np.testing.assert_allclose(one(found[name]), expected)


def at(tree, path):
    for name in path:
        tree = tree[name]
    return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize(("shape", "count"), [("scalar", 20), ("row", 0), ("column", 0), ("both", 0)])
def test_multipliers_are_counted(shape, count):
    stored = [row for row in rows(reparameterize(TABLE, learnable_multipliers(shape=shape)).table)]
    gates = sum(row.size for row in stored if row.role == "gate")
    matrices = [row for row in rows(TABLE) if row.is_matrix]
    sides = {"row": sum(m.fan_in * max(m.layers, 1) for m in matrices)}
    sides["column"] = sum(m.fan_out * max(m.layers, 1) for m in matrices)
    sides |= {"both": sides["row"] + sides["column"], "scalar": count}
    assert gates == sides[shape]
    assert all(row.decay == 0 and row.value == 1.0 for row in stored if row.role == "gate")
