"""The light measurements against NumPy float64, under reparameterizations that store one matrix in different ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import stability, table
from jaxstab.reparam import mlra, reparameterize, weight_norm, wesar

RNG = np.random.default_rng(0)
LAYERS, WIDTH, HIDDEN, VOCABULARY = 3, 4, 6, 9
ROLES = {"embed": "embed_tokens", "q": "q_proj", "up": "up_proj", "norm": "norm", "head": "lm_head"}
EPS = 1e-3


def drawn(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def weights_of():
    return {
        "embed": 3 * drawn(VOCABULARY, WIDTH) + 1,
        "layers": {"q": drawn(LAYERS, WIDTH, WIDTH), "up": drawn(LAYERS, WIDTH, HIDDEN), "norm": drawn(LAYERS, WIDTH)},
        "head": drawn(WIDTH, VOCABULARY),
    }


def table_of(weights):
    rows = table.read(weights, ROLES)
    rows["layers"]["up"] = rows["layers"]["up"].replace(eps=10.0)
    return rows


def measured(*methods, weights=None, rows=None, identity=False):
    """What a step of `light` finds, jitted, and everything that it was given."""
    weights = weights_of() if weights is None else weights
    rows = table_of(weights) if rows is None else rows
    rep = reparameterize(rows, *methods)
    raw, state = rep.init(weights)
    given = {"raw": raw, "weights": rep.merge(raw, state)}
    for name in ("raw_gradients", "clipped_raw_gradients", "updates"):
        given[name] = jax.tree.map(lambda leaf: drawn(*leaf.shape), raw)
    given["gradients"] = jax.tree.map(lambda leaf: drawn(*leaf.shape), given["weights"])
    given["new_weights"] = rep.merge(jax.tree.map(jnp.add, raw, given["updates"]), state)
    passed = {**given, "new_weights": None} if identity else given
    return jax.jit(lambda given: stability.step_statistics(rows, rep.table, **given, eps=EPS))(passed), given


def norms(stack):
    return np.linalg.norm(np.float64(stack), axis=(-2, -1))


def test_measurements_of_stored_and_effective_matrices_under_wesar():
    found, given = measured(wesar())
    up = {name: tree["layers"]["up"] for name, tree in given.items()}
    weight = {name: up[name]["weight"] for name in ("raw", "raw_gradients", "clipped_raw_gradients", "updates")}
    entries = np.sqrt(WIDTH * HIDDEN)
    expected = {
        "update_ratio": norms(weight["updates"]) / norms(weight["raw"]),
        "update_ratio_effective": norms(np.float64(up["new_weights"]) - up["weights"]) / norms(up["weights"]),
        "update_rms": norms(weight["updates"]) / entries,
        "norm": norms(weight["raw"]),
        "norm_effective": norms(up["weights"]),
        "grad_norm": norms(weight["raw_gradients"]),
        "grad_norm_effective": norms(up["gradients"]),
        "grad_rms_over_eps": norms(weight["clipped_raw_gradients"]) / entries / (10 * EPS),
        "gate": np.float64(up["raw"]["gate"]),
        "nonfinite_fraction": np.zeros(LAYERS),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[f"stability/{name}/up_proj"], value, rtol=1e-5, err_msg=name)
    roles = {"embed_tokens", "q_proj", "up_proj", "lm_head"}
    per_token = {f"stability/{name}/{role}" for name in ("tev_mean", "tev_std") for role in ("embed_tokens", "lm_head")}
    assert found.keys() == {f"stability/{name}/{role}" for name in expected for role in roles} | per_token
    shapes = {name: value.shape for name, value in found.items()}
    assert all(shape == ((LAYERS,) if "_proj" in name else ()) for name, shape in shapes.items()), shapes
    assert {value.dtype.name for value in found.values()} == {"float32"}
    eps_of_head = norms(given["clipped_raw_gradients"]["head"]["weight"]) / np.sqrt(WIDTH * VOCABULARY) / EPS
    np.testing.assert_allclose(found["stability/grad_rms_over_eps/lm_head"], eps_of_head, rtol=1e-5)


def test_tev_is_the_spread_of_a_token_s_entries_and_lm_head_has_a_column_a_token():
    found, given = measured(wesar())
    for role, by_token in (("embed_tokens", given["weights"]["embed"]), ("lm_head", given["weights"]["head"].T)):
        spread = np.float64(by_token).std(-1)
        np.testing.assert_allclose(found[f"stability/tev_mean/{role}"], spread.mean(), rtol=1e-5)
        np.testing.assert_allclose(found[f"stability/tev_std/{role}"], spread.std(), rtol=1e-5)


def test_tev_stands_an_embedding_far_from_its_mean():
    embedding = 1000 + RNG.normal(size=(50, 64))
    np.testing.assert_allclose(
        stability.token_variability(jnp.asarray(embedding, jnp.float32)), embedding.std(-1), rtol=1e-3
    )


def test_stored_ratios_serve_as_effective_ones_where_only_constants_lie_between():
    rows = table_of(weights_of())
    rows["embed"] = rows["embed"].replace(multiplier=7.0)
    rows["head"] = rows["head"].replace(tied="embed")
    weights = weights_of()
    weights["head"] = weights["embed"].T / 7
    reused, given = measured(weights=weights, rows=rows, identity=True)
    difference = jax.tree.map(jnp.subtract, given["new_weights"], given["weights"])
    for role, ratio in stability.update_ratio(rows, difference, given["weights"]).items():
        np.testing.assert_allclose(reused[f"stability/update_ratio_effective/{role}"], ratio, rtol=1e-4, err_msg=role)
    assert "stability/update_ratio/lm_head" not in reused, "a tied matrix isn't stored"
    np.testing.assert_allclose(reused["stability/norm_effective/embed_tokens"], norms(weights["embed"]), rtol=1e-5)


def test_a_product_of_two_factors_has_one_name_each_and_both_their_gates():
    found, given = measured(mlra(roles=("q_proj",)), wesar())
    stored = given["raw"]["layers"]["q"]
    for name, factor in (("q_proj", "left"), ("layers/q/right/weight", "right")):
        np.testing.assert_allclose(found[f"stability/norm/{name}"], norms(stored[factor]["weight"]), rtol=1e-5)
    for name, factor in (("q_proj", "left"), ("layers/q/right/gate", "right")):
        np.testing.assert_allclose(found[f"stability/gate/{name}"], stored[factor]["gate"], rtol=1e-6)
    np.testing.assert_allclose(
        found["stability/norm_effective/q_proj"], norms(given["weights"]["layers"]["q"]), rtol=1e-5
    )
    assert "stability/norm_effective/layers/q/right/weight" not in found


def test_the_ratio_of_two_gates_is_that_of_their_sizes():
    gates = {"q_proj": np.array([1.0, -4.0]), "k_proj": np.array([1.0, 2.0]), "v_proj": np.array([3.0, 3.0])}
    ratios = stability.gate_statistics(gates)
    np.testing.assert_allclose(ratios.pop("stability/gate_log_ratio"), [0, np.log(2)], atol=1e-6)
    assert not ratios and not stability.gate_statistics({"q_proj": gates["q_proj"]})


def test_a_vector_of_gates_is_its_root_mean_square():
    found, given = measured(weight_norm())
    for role, gate in (("up_proj", given["raw"]["layers"]["up"]["gate"]), ("lm_head", given["raw"]["head"]["gate"])):
        expected = np.sqrt(np.mean(np.float64(gate) ** 2, -1))
        np.testing.assert_allclose(found[f"stability/gate/{role}"], expected, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_counted_by_layer(value):
    rows, gradients = table_of(weights_of()), weights_of()
    gradients["layers"]["up"] = gradients["layers"]["up"].at[1, 2, :3].set(value)
    found = jax.jit(lambda g: stability.nonfinite_fraction(rows, g))(gradients)
    np.testing.assert_allclose(found["up_proj"], [0, 3 / (WIDTH * HIDDEN), 0], rtol=1e-6)
    assert not found["q_proj"].any() and found["lm_head"] == 0


def test_large_finite_entries_whose_norm_overflows_are_not_counted():
    rows, gradients = table_of(weights_of()), weights_of()
    gradients["head"] = jnp.full_like(gradients["head"], 1e30)
    assert np.isinf(stability.matrix_norm(rows["head"], gradients["head"]))
    assert stability.nonfinite_fraction(rows, gradients)["lm_head"] == 0


def test_without_eps_nothing_is_divided_by_it():
    weights = weights_of()
    rows = table_of(weights)
    found = stability.step_statistics(
        rows,
        rows,
        raw=weights,
        weights=weights,
        raw_gradients=weights,
        gradients=weights,
        clipped_raw_gradients=weights,
        updates=weights,
        new_weights=None,
        eps=0.0,
    )
    assert not [name for name in found if "over_eps" in name]
    np.testing.assert_allclose(found["stability/update_ratio_effective/up_proj"], np.ones(LAYERS))
