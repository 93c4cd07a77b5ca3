"""residual_scaling: a constant on every branch's last matrix and bias, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.initialize import draw, he, scaled, small
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.reparam import reparameterize, residual_scaling, sigma_reparam
from jaxstab.table import leaves_of, like, rows

CONFIG = ModelConfig(width=8, layers=3, heads=2, vocabulary=11, max_length=8, bias=True, remat="none")
TABLE = scaled(read_table(CONFIG), he())
BRANCH = {f"layers/{name}/{kind}" for name in ("self_attn/o_proj", "mlp/down_proj") for kind in ("kernel", "bias")}


def test_branches_of_the_model_are_scaled_and_the_rest_is_not():
    rep = reparameterize(TABLE, residual_scaling())
    raw, state = rep.init(jax.tree.map(lambda x: x + 0.1, draw(jax.random.key(0), TABLE)))
    weights, pullback = jax.vjp(lambda raw: rep.effective(raw, state)[0], raw)
    cotangent = jax.tree.map(jnp.ones_like, weights)
    (gradient,) = pullback(cotangent)
    for row, stored, weight, d_stored in zip(
        rows(TABLE), leaves_of(TABLE, raw), leaves_of(TABLE, weights), leaves_of(TABLE, gradient), strict=True
    ):
        factor = 1 / np.sqrt(2 * 3) if row.path in BRANCH else 1.0
        stored, d_stored = (x["weight"] if isinstance(x, dict) else x for x in (stored, d_stored))
        np.testing.assert_allclose(weight, factor * stored, rtol=1e-6)
        np.testing.assert_allclose(d_stored, factor, rtol=1e-6)


def test_the_backbones_own_factor_is_not_applied_twice():
    for scale in (he(), small()):
        table = scaled(read_table(CONFIG), scale)
        rep = reparameterize(table, residual_scaling())
        weights = draw(jax.random.key(0), table)
        raw, state = rep.init(weights)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), rep.merge(raw, state), weights)
        stored = {row.path: row.std for row in rows(rep.table)}
        down = next(row for row in rows(table) if row.role == "down_proj")
        np.testing.assert_allclose(stored["layers/mlp/down_proj/kernel/weight"], np.sqrt(6) * down.std)


def test_one_factor_scales_the_branch_itself():
    """What attention puts out, its bias included, in a model of one block."""
    config = ModelConfig(width=8, layers=1, heads=2, vocabulary=11, max_length=8, bias=True, remat="none")
    table = scaled(read_table(config), he())
    weights = jax.tree.map(lambda x: x + 0.1, draw(jax.random.key(1), table))
    tokens = jax.random.randint(jax.random.key(2), (2, 8), 0, 11)
    rep = reparameterize(table, residual_scaling())
    raw, state = rep.init(weights)
    plain = like(table, [x["weight"] if isinstance(x, dict) else x for x in leaves_of(table, raw)])

    def attention(weights):
        _, seen = Transformer(config).apply(
            {"params": weights}, tokens, capture_intermediates=True, mutable=["intermediates"]
        )
        return seen["intermediates"]["layers"]["self_attn"]["__call__"][0]

    np.testing.assert_allclose(attention(rep.merge(raw, state)), attention(plain) / np.sqrt(2), rtol=1e-5)


def test_the_constant_stays_outside_a_spectral_gate():
    rep = reparameterize(TABLE, residual_scaling(), sigma_reparam(gate="one"))
    merged = rep.merge(*rep.init(draw(jax.random.key(0), TABLE)))
    found = np.linalg.svd(merged["layers"]["mlp"]["down_proj"]["kernel"], compute_uv=False)[:, 0]
    np.testing.assert_allclose(found, 1 / np.sqrt(6), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(merged["lm_head"]["kernel"], compute_uv=False)[0], 1, rtol=1e-5)
