"""mlra: products of two factors, and the control of the same size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.config import ConfigError
from jaxstab.initialize import draw, normal, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import read_table
from jaxstab.reparam import mlra, reparameterize, wesar
from jaxstab.table import Row, count, rows

WIDE = Row("k", "k_proj", (3, 4, 6), (None,) * 3, True, std=0.5)
LARGE = Row("q", "q_proj", (2, 300, 200), (None, "embed", "heads"), True, std=0.5)


def test_values_and_gradients_after_three_updates_are_those_of_the_product():
    with jax.enable_x64(True):
        rep = reparameterize({"k": WIDE}, mlra(rank=2))
        raw, state = rep.init({"k": jnp.ones(WIDE.shape, jnp.float64)})
        for step in range(4):
            delta = np.random.default_rng(step).normal(size=WIDE.shape)
            weights, pullback, state = jax.vjp(lambda raw, s=state: rep.effective(raw, s), raw, has_aux=True)
            (gradient,) = pullback({"k": jnp.asarray(delta)})
            left, right = np.asarray(raw["k"]["left"]), np.asarray(raw["k"]["right"])
            np.testing.assert_allclose(weights["k"], np.einsum("lir,lro->lio", left, right), rtol=1e-12)
            np.testing.assert_allclose(gradient["k"]["left"], np.einsum("lio,lro->lir", delta, right), rtol=1e-10)
            np.testing.assert_allclose(gradient["k"]["right"], np.einsum("lir,lio->lro", left, delta), rtol=1e-10)
            raw = jax.tree.map(lambda x, g: x - 0.1 * g, raw, gradient)


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize(("rank", "std"), [(50, 0.2), (0, 0.1)])
def test_the_products_variance_is_r_s4(control, rank, std):
    rep = reparameterize({"q": LARGE}, mlra(rank=rank, std=std, control=control))
    merged = rep.merge(*rep.init(draw(jax.random.key(0), {"q": LARGE})))["q"]
    used = rank or 300 * 200 // 500
    np.testing.assert_allclose(np.var(merged), used * std**4, rtol=0.05)
    expected = used if not control else 200
    assert np.linalg.matrix_rank(np.asarray(merged[0], np.float64), tol=1e-4) == expected
    for row in rows(rep.table):
        np.testing.assert_allclose(row.std, np.sqrt(used) * std**2 if control else std)


def test_by_default_the_product_has_the_backbones_std_and_as_many_parameters():
    config = ModelConfig(width=64, layers=2, heads=4, kv_heads=2, vocabulary=31, max_length=8)
    table = scaled(read_table(config), normal())
    rep = reparameterize(table, mlra())
    merged = rep.merge(*rep.init(draw(jax.random.key(0), table)))
    np.testing.assert_allclose(np.std(merged["layers"]["self_attn"]["q_proj"]["kernel"]), 0.02, rtol=0.05)
    assert rep.table["layers"]["self_attn"]["q_proj"]["kernel"]["left"].shape == (2, 64, 32)
    assert rep.table["layers"]["self_attn"]["q_proj"]["kernel"]["right"].axes == ("layers", None, "heads")
    assert rep.table["layers"]["self_attn"]["k_proj"]["kernel"]["left"].shape == (2, 64, 21)
    assert 0 <= count(table) - count(rep.table) < 2 * 2 * (64 + 32)  # rounding of the rank of k and v


def test_layers_are_drawn_apart_and_the_same_again():
    rep = reparameterize({"k": WIDE}, mlra())
    raw, _ = rep.init({"k": jnp.ones(WIDE.shape)})
    again, _ = rep.init({"k": jnp.zeros(WIDE.shape)})
    assert not np.allclose(raw["k"]["left"][0], raw["k"]["left"][1])
    np.testing.assert_array_equal(raw["k"]["left"], again["k"]["left"])


def test_wesar_gates_both_factors_and_keeps_the_product():
    plain = reparameterize({"q": LARGE}, mlra(rank=50, std=0.2))
    gated = reparameterize({"q": LARGE}, mlra(rank=50, std=0.2), wesar(sigma=0.01))
    weights = draw(jax.random.key(0), {"q": LARGE})
    raw, state = gated.init(weights)
    np.testing.assert_allclose(
        gated.merge(raw, state)["q"], plain.merge(*plain.init(weights))["q"], rtol=1e-5, atol=1e-6
    )
    assert raw["q"]["left"]["gate"].shape == (2,)
    np.testing.assert_allclose(np.std(raw["q"]["right"]["weight"]), 0.01, rtol=0.02)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"reparam.mlra.rank=5 is larger than k_proj, 4 x 6; at most 4"):
        reparameterize({"k": WIDE}, mlra(rank=5))
    with pytest.raises(ConfigError, match="did you mean q_proj"):
        mlra(roles=("q_prj",))
    config = ModelConfig(width=8, layers=2, heads=2, vocabulary=31, max_length=8, tie_embeddings=True)
    table = scaled(read_table(config), normal())
    for roles in (("lm_head",), ("embed_tokens",), ("embed_tokens", "lm_head")):
        with pytest.raises(ConfigError, match=r"lm_head/kernel.* is tied to embed_tokens/embedding"):
            reparameterize(table, mlra(roles=roles))
