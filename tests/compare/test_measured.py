"""Every model of the comparison can be measured in full, with instruments, as the ladder does."""

import jax
import jax.numpy as jnp
import pytest

from configs.methods import METHODS
from jaxstab.compare import read_grid
from jaxstab.train.config import default_config, resolve
from jaxstab.train.program import build
from jaxstab.train.step_io import hypers

# One method of each model: what else differs isn't measured otherwise.
MODELS = {
    tuple(item for item in keys.items() if item[0].startswith(("model.", "reparam.method"))): name
    for name, keys in METHODS.items()
}


@pytest.mark.parametrize("method", MODELS.values())
def test_a_method_is_measured_in_full(method):
    values = default_config()
    values.model.update(width=16, layers=2, heads=2, vocabulary=31, max_length=8)
    values.data.length, values.train.batch_size, values.train.steps = 8, 4, 200
    values.stability.update(measure="full", instruments=("curvature", "entropy", "jacobians"))
    (cell,) = read_grid(resolve(values), METHODS, [method], [], [], []).cells
    program = build(cell.config)
    tokens = jax.ShapeDtypeStruct((4, 9), jnp.int32)
    scalars, vectors = jax.eval_shape(program.measure, program.abstract_state, tokens, hypers(program))
    assert scalars and vectors
