"""First moments that start anew after a skip: which do, by the running averages of their gradients' norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab.config import ConfigError, from_config_dict
from jaxstab.optimize import OPTIMIZERS, Hypers, OptimizerConfig, build
from jaxstab.optimize.restart import FIRST_MOMENTS, gradient_norms
from tests.optimize.test_rules import PARAMETERS, TABLE, draw
from tests.train.test_options import config_of

HYPERS = Hypers(jnp.float32(0.1), jnp.float32(0.0))
ABOVE = 3.0


def layers(row, x):
    return np.float64(x if row.stacked else x[None])


def norms(name, gradient):
    """The norm of each layer's gradient, of one parameter."""
    return np.array([np.linalg.norm(each) for each in layers(TABLE[name], gradient[name])])


def test_averages_follow_the_formula_and_a_spike_enters_at_the_limit():
    gradients = [draw(seed, scale) for seed, scale in enumerate([1.0, 0.5, 20.0, 1.0])]
    transformation = gradient_norms(TABLE, ABOVE)
    state = transformation.init(PARAMETERS)
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, PARAMETERS, gradients=gradient)
        assert updates is gradient
    for name in TABLE:
        average = norms(name, gradients[0])
        for gradient in gradients[1:]:
            average = 0.99 * average + 0.01 * np.minimum(norms(name, gradient), ABOVE * average)
        np.testing.assert_allclose(np.ravel(state.averages[name]), average, rtol=1e-5)


def moments(state):
    """The trees of first moments in an optimizer's state; of a parameter that one hasn't, another has it."""
    is_state = lambda node: any(hasattr(node, name) for name in FIRST_MOMENTS)  # noqa: E731
    nodes = [node for node in jax.tree.leaves(state, is_leaf=is_state) if is_state(node)]
    trees = [getattr(node, name) for node in nodes for name in FIRST_MOMENTS if hasattr(node, name)]
    return {name: tree[name] for tree in trees for name in tree if not isinstance(tree[name], optax.MaskedNode)}


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_layers_that_a_skipped_step_hit_lose_their_first_moments_and_nothing_else_changes(rule):
    values = {"rule": {"method": rule}, "warmup": 0, "restart_above": ABOVE}
    optimizer = build(from_config_dict(OptimizerConfig, values), TABLE, 10)
    state = optimizer.update.init(PARAMETERS)
    for seed in (1, 2):
        _, state = optimizer.update.update(draw(seed), state, PARAMETERS, hypers=HYPERS, gradients=draw(seed))
    bad = draw(3)
    bad["q"][1] *= 40  # one layer of a stack
    bad["head"][0, 0] = np.nan
    bad["gate"][:] = 0, 0, 50
    restarted, count = optimizer.restart(state, bad, jnp.array(True))
    assert count == 3
    before, after = moments(state), moments(restarted)
    assert before.keys() == after.keys() == TABLE.keys()
    expected = jax.tree.map(np.array, before)
    expected["q"][1] = expected["head"][:] = expected["gate"][2] = 0.0
    jax.tree.map(np.testing.assert_array_equal, after, expected)
    changed = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state, restarted)), strict=True)]
    assert sum(changed) == 3, "second moments, counts and averages are as they were"


def test_nothing_finite_is_hit_before_an_average_is_known():
    optimizer = build(from_config_dict(OptimizerConfig, {"warmup": 0, "restart_above": ABOVE}), TABLE, 10)
    assert optimizer.restart(optimizer.update.init(PARAMETERS), draw(1, 1e6), jnp.array(True))[1] == 0


def test_it_is_refused_where_no_step_is_skipped():
    with pytest.raises(ConfigError, match=r"optimizer.restart_above=4.0 acts after a skipped step, and no step is"):
        config_of({"optimizer.restart_above": 4.0})
