"""rescaled_rates is WeSaR with fixed gates, step for step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab.config import ConfigError
from jaxstab.initialize import draw, he, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import unit
from jaxstab.model.transformer import read_table
from jaxstab.optimize import Hypers, OptimizerConfig, build
from jaxstab.reparam import reparameterize, rescaled_rates, wesar
from jaxstab.table import read, rows

CONFIG = ModelConfig(width=8, layers=3, heads=2, vocabulary=11, max_length=8, remat="none")
TABLE = scaled(read_table(CONFIG), he(), embedding=unit().multiplier)
STEPS = 5


def trained(method, sigma):
    """Effective weights after a few steps on gradients of a function of them."""
    rep = reparameterize(TABLE, method)
    optimizer = build(OptimizerConfig(warmup=1, weight_decay=0.1), rep.table, steps=STEPS)
    raw, state = rep.init(draw(jax.random.key(0), TABLE))
    opt = optimizer.update.init(raw)

    def loss(raw):
        weights = rep.effective(raw, state)[0]
        return sum(jnp.sum(jnp.sin(3 * leaf)) for leaf in jax.tree.leaves(weights))

    for _ in range(STEPS):
        updates, opt = optimizer.update.update(jax.grad(loss)(raw), opt, raw, hypers=Hypers(1e-3, 0.1))
        raw = optax.apply_updates(raw, updates)
    return rep.merge(raw, state)


def test_it_is_wesar_with_fixed_gates_step_for_step():
    for sigma in (0.0063, 0.05):
        ours, theirs = trained(rescaled_rates(sigma), sigma), trained(wesar(sigma, trainable_gates=False), sigma)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), ours, theirs)
    begun = draw(jax.random.key(0), TABLE)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), ours, begun)
    assert moved["layers"]["self_attn"]["q_proj"]["kernel"] > 1e-3  # what agreed is training, not standing still


def test_what_has_no_scale_to_go_by_keeps_its_rate_and_one_a_layer_is_refused():
    table = read({"layers": {"up": jax.ShapeDtypeStruct((2, 4, 4), jnp.float32)}}, {"up": "up_proj"})
    (row,) = rows(reparameterize(table, rescaled_rates()).table)
    assert (row.learning_rate, row.decay, row.eps) == (1.0, 1.0, 1.0)
    by_layer = jax.tree.map(lambda row: row.replace(std=(0.1, 0.2)), table)
    with pytest.raises(ConfigError, match="one standard deviation for all layers of layers/up"):
        reparameterize(by_layer, rescaled_rates())
