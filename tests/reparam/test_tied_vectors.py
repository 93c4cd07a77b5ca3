"""A vector that a matrix and its bias share, with a layer axis, and what a method's author is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.initialize import draw, he, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import read_table
from jaxstab.reparam import METHODS, Method, reparameterize
from jaxstab.reparam.base import KINDS

TABLE = scaled(read_table(ModelConfig(width=8, layers=3, heads=2, vocabulary=11, max_length=4, bias=True)), he())


def per_channel(size=8):
    """W diag(g) for the last matrix of each branch, and g b for its bias."""

    def rows(row):
        gate = row.gate(0.5, axis=-1)
        return {"weight": row, "gate": gate if row.is_matrix else gate.replace(tied=row.branch)}

    def init(row, weight, std, key):
        return {"weight": weight, "gate": jnp.linspace(0.0, 1.0, size)}, ()

    return Method(
        lambda row: bool(row.branch), rows, init, lambda row, stored, state: (stored["weight"] * stored["gate"], state)
    )


def test_it_is_stored_once_and_multiplies_both():
    rep = reparameterize(TABLE, per_channel())
    weights = jax.tree.map(jnp.ones_like, draw(jax.random.key(0), TABLE))
    raw, state = rep.init(weights)
    stored = raw["layers"]["mlp"]["down_proj"]
    assert stored["kernel"]["gate"].shape == (3, 8) and stored["bias"]["gate"] is None
    used = rep.merge(raw, state)["layers"]["mlp"]["down_proj"]
    gate = np.broadcast_to(np.linspace(0, 1, 8), (3, 8))
    np.testing.assert_allclose(used["bias"], gate, rtol=1e-6)
    np.testing.assert_allclose(used["kernel"], np.broadcast_to(gate[:, None], used["kernel"].shape), rtol=1e-6)


def test_an_init_that_stores_something_else_than_the_rows_say_is_told():
    with pytest.raises(ValueError, match=r"rows say layers/.*/gate \(3, 8\), its init gives \(3, 5\)"):
        reparameterize(TABLE, per_channel(size=5)).init(draw(jax.random.key(0), TABLE))


@pytest.mark.parametrize("name", METHODS)
def test_every_registered_method_has_a_place_in_chains(name):
    assert METHODS[name]().kind in KINDS
