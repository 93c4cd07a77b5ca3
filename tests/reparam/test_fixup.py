"""The scalars of Fixup: multipliers of branches, and biases of one number."""

import jax
import numpy as np

from jaxstab.initialize import draw, fixup, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import read_table
from jaxstab.reparam import fixup as scalars
from jaxstab.reparam import reparameterize
from jaxstab.table import rows
from tests.reparam.drawn import pulled_back


def table_of(bias):
    config = ModelConfig(width=8, layers=3, heads=2, vocabulary=11, max_length=8, bias=bias, norm="layernorm")
    return scaled(read_table(config), fixup())


def test_values_and_gradients_are_the_formulas():
    trees = pulled_back(table_of(bias=True), scalars())
    stored, used, delta, slopes = (tree["layers"]["mlp"]["down_proj"] for tree in trees)
    a, b = stored["kernel"]["gate"], stored["bias"]["bias"]
    assert a.shape == b.shape == (3,)
    np.testing.assert_allclose(used["kernel"], a[:, None, None] * stored["kernel"]["weight"])
    np.testing.assert_allclose(used["bias"], (a * b)[:, None] * np.ones(8))
    np.testing.assert_allclose(slopes["kernel"]["weight"], a[:, None, None] * delta["kernel"])
    np.testing.assert_allclose(slopes["bias"]["bias"], a * delta["bias"].sum(1))
    by_a = (delta["kernel"] * stored["kernel"]["weight"]).sum((1, 2)) + b * delta["bias"].sum(1)
    np.testing.assert_allclose(slopes["kernel"]["gate"], by_a)
    stored, used, delta, slopes = (tree["layers"]["mlp"]["up_proj"] for tree in trees)
    np.testing.assert_allclose(used["kernel"], stored["kernel"])
    np.testing.assert_allclose(used["bias"], stored["bias"]["bias"][:, None] * np.ones(32))
    np.testing.assert_allclose(slopes["bias"]["bias"], delta["bias"].sum(1))


def test_they_begin_at_one_and_zero_and_leave_norms_alone():
    for bias in (False, True):
        table = table_of(bias)
        rep = reparameterize(table, scalars())
        raw, _ = rep.init(draw(jax.random.key(0), table))
        stored = list(zip(rows(rep.table), jax.tree.leaves(raw), strict=True))
        gates = [leaf for row, leaf in stored if row.role == "gate"]
        assert len(gates) == 2 and all(np.all(gate == 1) for gate in gates)
        numbers = [leaf for row, leaf in stored if row.path.endswith("/bias/bias")]
        assert len(numbers) == 6 * bias and all(number.shape == (3,) and np.all(number == 0) for number in numbers)
        norms = [row for row, _ in stored if "norm/bias" in row.path]
        assert all(row.shape[-1] == 8 for row in norms) and bool(norms) == bias
