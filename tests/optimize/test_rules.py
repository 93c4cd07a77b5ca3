"""Update rules over several steps: stacked, non-square matrices next to vectors and gates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from jaxstab import scale
from jaxstab.config import ConfigError, from_config_dict
from jaxstab.optimize import CLIPS, OPTIMIZERS, Hypers, OptimizerConfig, build, state_shardings
from jaxstab.optimize.muon import POLAR_EXPRESS, orthogonalize
from jaxstab.table import Row

SHAPES = {
    "embed": ("embed_tokens", (7, 4), ("vocab", "embed"), False),
    "q": ("q_proj", (3, 4, 6), ("layers", "embed", "heads"), True),
    "down": ("down_proj", (3, 6, 4), ("layers", "mlp", "embed"), True),
    "alone": ("up_proj", (4, 6), ("embed", "mlp"), False),
    "gate": ("gate", (3,), ("layers",), True),
    "norm": ("norm", (3, 4), ("layers", "embed"), True),
    "head": ("lm_head", (4, 7), ("embed", "vocab"), False),
    "o": ("o_proj", (3, 6, 4), ("layers", "heads", "embed"), True),
}
HEAD_DIM, HEAD_AXIS = 3, {"q": 1, "o": 0}
TABLE = {
    name: Row(name, role, shape, axes, stacked, head_dim=HEAD_DIM * (name in HEAD_AXIS))
    for name, (role, shape, axes, stacked) in SHAPES.items()
}
HIDDEN = ("q", "down", "alone", "o")
HYPERS = Hypers(jnp.float32(0.1), jnp.float32(0.0))


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.standard_normal(row.shape)).astype(np.float32) for name, row in TABLE.items()}


PARAMETERS = draw(0)
# A spike among ordinary gradients, and one matrix that spikes alone in one layer.
GRADIENTS = [draw(seed, scale) for seed, scale in enumerate([1.0, 0.5, 9.0, 1e-3, 1.0], 1)]
GRADIENTS[4]["q"][1] *= 40


def optimizer(rule, **options):
    values = {"rule": {"method": rule, rule: options}, "schedule": {"method": "constant"}, "warmup": 0}
    return build(from_config_dict(OptimizerConfig, values), TABLE, 10)


def run(rule, **options):
    """The updates of every step, divided by the learning rate."""
    update = optimizer(rule, **options).update
    state, taken = update.init(PARAMETERS), []
    for gradients in GRADIENTS:
        updates, state = jax.jit(update.update)(gradients, state, PARAMETERS, hypers=HYPERS)
        taken.append(jax.tree.map(lambda u: np.asarray(u) / -0.1, updates))
    return taken


def matrices(row, x):
    """The matrices of a stack, or the one that there is."""
    return list(x) if row.stacked else [x]


def adam(gradients, b1=0.9, b2=0.95, eps=1e-8):
    """Kingma and Ba 2015, Algorithm 1, in float64: pairs (update, corrected second moment)."""
    m = v = 0.0
    for t, g in enumerate(np.asarray(gradients, np.float64), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        yield m_hat / (np.sqrt(v_hat) + eps), v_hat


def test_adamw_follows_the_formula():
    for name in TABLE:
        expected = [update for update, _ in adam([g[name] for g in GRADIENTS], 0.8, 0.9, 1e-3)]
        np.testing.assert_allclose([u[name] for u in run("adamw", b1=0.8, b2=0.9, eps=1e-3)], expected, rtol=1e-4)


def test_stable_adamw_divides_each_matrix_by_its_own_rms():
    taken = run("stable_adamw", b1=0.8, b2=0.9, eps=1e-3)
    divided = 0
    for name, row in TABLE.items():
        stacks = zip(*(matrices(row, g[name]) for g in GRADIENTS), strict=True)
        for layer, gradients in enumerate(stacks):
            for t, (update, v_hat) in enumerate(adam(gradients, 0.8, 0.9, 1e-3)):
                rms = np.sqrt(np.mean(np.float64(gradients[t]) ** 2 / np.maximum(v_hat, 1e-6)))
                divided += rms > 1
                np.testing.assert_allclose(
                    matrices(row, taken[t][name])[layer], update / max(1.0, rms), rtol=1e-4, atol=1e-6
                )
    assert divided > 10


def test_stable_adamw_gives_the_weights_of_the_authors_code():
    # StableAdamWUnfused (Wortsman's gist d42e22a0), betas 0.8 and 0.9, eps 1e-3, rate 0.1, decay 0.05, in float64.
    expected = [[-0.1228627334, 0.9003306766, 1.0624213546], [0.2696758123, -0.7748229559, -1.1418543801]]
    index = np.arange(6.0).reshape(2, 3)
    table = {"w": Row("w", "up_proj", (2, 3), (None, None), False, decay=1.0)}
    values = {
        "rule": {"method": "stable_adamw", "stable_adamw": {"b1": 0.8, "b2": 0.9, "eps": 1e-3}},
        "schedule": {"method": "constant"},
        "warmup": 0,
    }
    update = build(from_config_dict(OptimizerConfig, values), table, 6).update
    weights = {"w": jnp.sin(index)}
    state = update.init(weights)
    for t, size in enumerate([1.0, 1.2, 0.5, 8.0, 1.0, 1e-4]):
        updates, state = update.update({"w": size * jnp.cos(index + t)}, state, weights, hypers=Hypers(0.1, 0.05))
        weights = optax.apply_updates(weights, updates)
    np.testing.assert_allclose(weights["w"], expected, rtol=1e-5)


def newton_schulz(x, steps=5):
    """Jordan 2024: a quintic iteration on the wide side, from a Frobenius norm of 1."""
    wide = x.T if x.shape[0] > x.shape[1] else x
    wide = wide / np.linalg.norm(wide)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.T if x.shape[0] > x.shape[1] else wide


def muon(gradients, beta):
    """Nesterov momentum with Dozat's (2016) bias correction, orthogonalized, in float64."""
    m = 0.0
    for t, g in enumerate(np.asarray(gradients, np.float64), 1):
        m = beta * m + (1 - beta) * g
        yield newton_schulz(beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t))


def muon_per_head(name, gradients, beta):
    """As `muon`, on each head's block of a matrix apart where it has heads: pairs (update, shape of a block)."""
    gradients = np.asarray(gradients, np.float64)
    axis = HEAD_AXIS.get(name)
    heads = 1 if axis is None else gradients.shape[axis + 1] // HEAD_DIM
    blocks = zip(*(muon(block, beta) for block in np.split(gradients, heads, (axis or 0) + 1)), strict=True)
    for updates in blocks:
        yield np.concatenate(updates, axis or 0), updates[0].shape


def polar_express(x, steps):
    """Amsel et al. 2025: polynomials one after the other; the safety factor is in all but the last."""
    wide = x.T if x.shape[0] > x.shape[1] else x
    wide = wide / np.linalg.norm(wide)
    for step in range(steps):
        a, b, c = POLAR_EXPRESS[step]
        scaled = wide / 1.01 if step < steps - 1 else wide
        gram = scaled @ scaled.T
        wide = a * scaled + (b * gram + c * gram @ gram) @ scaled
    return wide.T if x.shape[0] > x.shape[1] else wide


def test_polar_express_gives_the_polar_factor():
    x = np.random.default_rng(0).standard_normal((4, 6))
    u, _, v = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(polar_express(x, 8), u @ v, atol=1e-2)
    transformation = orthogonalize(0.0, 8, "polar_express")
    update, _ = transformation.update({"w": jnp.asarray(x)}, transformation.init({"w": jnp.asarray(x)}))
    np.testing.assert_allclose(update["w"], u @ v, atol=1e-2)
    for steps in (3, 5):
        transformation = orthogonalize(0.0, steps, "polar_express")
        update, _ = transformation.update({"w": jnp.asarray(x)}, transformation.init({"w": jnp.asarray(x)}))
        np.testing.assert_allclose(update["w"], polar_express(x, steps), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rms", [0.2, 0.0])
def test_muon_per_head_orthogonalizes_each_head_s_block_apart(rms):
    taken = run("muon", momentum=0.9, rms=rms, per_head=True)
    for name in HIDDEN:
        row = TABLE[name]
        for layer, gradients in enumerate(zip(*(matrices(row, g[name]) for g in GRADIENTS), strict=True)):
            for t, (update, (fan_in, fan_out)) in enumerate(muon_per_head(name, gradients, 0.9)):
                factor = rms * np.sqrt(max(fan_in, fan_out)) if rms else np.sqrt(max(1, fan_out / fan_in))
                actual = matrices(row, taken[t][name])[layer]
                np.testing.assert_allclose(actual, factor * update, rtol=1e-3, atol=1e-4)


def test_muon_per_head_is_refused_where_no_matrix_has_heads():
    values = {"rule": {"method": "muon", "muon": {"per_head": True}}, "warmup": 0}
    table = {name: row.replace(head_dim=0) for name, row in TABLE.items()}
    with pytest.raises(ConfigError, match=r"per_head=True needs .* Row.head_dim"):
        build(from_config_dict(OptimizerConfig, values), table, 10)


@pytest.mark.parametrize("per_head", [False, True])
def test_normuon_divides_output_units_and_keeps_the_norm(per_head):
    beta, moments = 0.9, {}
    taken = run("normuon", momentum=0.9, unit_decay=beta, rms=0.0, per_head=per_head)
    for name in HIDDEN:
        row = TABLE[name]
        for layer, gradients in enumerate(zip(*(matrices(row, g[name]) for g in GRADIENTS), strict=True)):
            for t, (update, (fan_in, fan_out)) in enumerate(muon_per_head(name if per_head else "", gradients, 0.9)):
                factor = np.sqrt(max(1, fan_out / fan_in))
                second = beta * moments.get((name, layer), 0.0) + (1 - beta) * np.mean(update**2, 0)
                moments[name, layer] = second
                scaled = update / np.sqrt(second)
                expected = factor * scaled * np.linalg.norm(update) / np.linalg.norm(scaled)
                np.testing.assert_allclose(matrices(row, taken[t][name])[layer], expected, rtol=2e-3, atol=2e-4)


def test_cautious_adamw_leaves_out_what_goes_against_the_gradient():
    taken = run("cautious_adamw", b1=0.8, b2=0.9, eps=1e-3)
    for name, row in TABLE.items():
        for layer, gradients in enumerate(zip(*(matrices(row, g[name]) for g in GRADIENTS), strict=True)):
            for t, (update, _) in enumerate(adam(gradients, 0.8, 0.9, 1e-3)):
                agrees = update * gradients[t] > 0
                expected = update * agrees / max(agrees.mean(), 1e-3)
                np.testing.assert_allclose(matrices(row, taken[t][name])[layer], expected, rtol=1e-3, atol=1e-6)


def spam(gradients, threshold, interval, grace, rewarm, b1, b2, eps):
    """Huang et al. 2025, Algorithm 1, entry by entry in float64, with the bias correction of the first update on."""
    m, v = np.zeros_like(gradients[0], np.float64), np.zeros_like(gradients[0], np.float64)
    for t, g in enumerate(np.asarray(gradients, np.float64), 1):
        since = t % interval
        if since == 0:
            m, v = 0 * m, 0 * v
        if since >= grace:
            g = np.where((g**2 > threshold * v) & (v > 0), np.sign(g) * np.sqrt(threshold * v), g)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        share = (
            1 - 0.99 * (1 + np.cos(np.pi * (since + 1) / (rewarm + 1))) / 2 if t >= interval and since < rewarm else 1
        )
        yield share * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def test_spam_clips_entries_restarts_its_moments_and_grows_back():
    options = {"threshold": 2.0, "interval": 4, "grace": 2, "rewarm": 2, "b1": 0.8, "b2": 0.9, "eps": 1e-3}
    taken = run("spam", **options)
    without = run("spam", **options | {"threshold": 1e9})
    for name in TABLE:
        expected = list(spam([g[name] for g in GRADIENTS], **options))
        np.testing.assert_allclose([u[name] for u in taken], expected, rtol=1e-4, atol=1e-6)
        assert np.abs(without[2][name] - taken[2][name]).max() > 0.1, "nothing was clipped"


def test_spam_leaves_an_entry_alone_whose_second_moment_is_zero():
    """A token that hasn't come up so far: its first gradient isn't clipped to zero."""
    update = optimizer("spam", threshold=2.0, interval=100, grace=1).update
    state = update.init(PARAMETERS)
    _, state = update.update(jax.tree.map(np.zeros_like, PARAMETERS), state, PARAMETERS, hypers=HYPERS)
    updates, _ = update.update(GRADIENTS[0], state, PARAMETERS, hypers=HYPERS)
    assert all((np.asarray(leaf) != 0).all() for leaf in jax.tree.leaves(updates))


def test_spam_refuses_a_grace_that_never_ends():
    with pytest.raises(ConfigError, match=r"grace=8 must be below its interval=8"):
        optimizer("spam", interval=8, grace=8)


@pytest.mark.parametrize(
    ("ratio", "b2", "eps"), [(1.0, 0.999, 1e-3), (4.0, 0.999**4, 5e-4), (1e3, 0.95, 1e-3 / 1e3**0.5)]
)
def test_batch_adamw_remembers_tokens(ratio, b2, eps):
    expected = run("adamw", b2=b2, eps=eps)
    found = run("batch_adamw", batch_ratio=ratio, b2=0.999, eps=1e-3)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), found, expected)


@pytest.mark.parametrize("rms", [0.2, 0.0])
def test_muon_orthogonalizes_the_matrices_of_the_blocks_and_leaves_the_rest_to_adam(rms):
    taken = run("muon", momentum=0.9, rms=rms, b1=0.8, b2=0.9, eps=1e-3)
    for name, row in TABLE.items():
        if name not in HIDDEN:
            expected = [update for update, _ in adam([g[name] for g in GRADIENTS], 0.8, 0.9, 1e-3)]
            np.testing.assert_allclose([u[name] for u in taken], expected, rtol=1e-4)
            continue
        fan_in, fan_out = row.shape[-2:]
        factor = rms * np.sqrt(max(fan_in, fan_out)) if rms else np.sqrt(max(1, fan_out / fan_in))
        for layer, gradients in enumerate(zip(*(matrices(row, g[name]) for g in GRADIENTS), strict=True)):
            for t, update in enumerate(muon(gradients, 0.9)):
                actual = matrices(row, taken[t][name])[layer]
                np.testing.assert_allclose(actual, factor * update, rtol=1e-3, atol=1e-4)


def test_a_muon_update_has_the_rms_it_is_given():
    # Newton-Schulz with these coefficients leaves singular values between 0.68 and 1.14 (Jordan 2024).
    for updates in run("muon", rms=0.3, newton_schulz=8):
        for name in HIDDEN:
            for update in matrices(TABLE[name], updates[name]):
                assert 0.68 * 0.3 < np.sqrt(np.mean(update**2)) < 1.14 * 0.3


RULES = [
    ("adamw", {}),
    ("adamw", {"b1": 0.8}),
    ("adamw", {"b2": 0.8}),
    ("adamw", {"eps": 1e-2}),
    ("stable_adamw", {}),
    ("stable_adamw", {"b1": 0.8}),
    ("stable_adamw", {"b2": 0.8}),
    ("stable_adamw", {"eps": 1e-2}),
    ("muon", {}),
    ("muon", {"momentum": 0.8}),
    ("muon", {"newton_schulz": 4}),
    ("muon", {"rms": 0.1}),
    ("muon", {"rms": 0.0}),
    ("muon", {"b1": 0.8}),
    ("muon", {"b2": 0.8}),
    ("muon", {"eps": 1e-2}),
    ("muon", {"coefficients": "polar_express"}),
    ("muon", {"per_head": True}),
    ("cautious_adamw", {}),
    ("cautious_adamw", {"b1": 0.8}),
    ("cautious_adamw", {"b2": 0.8}),
    ("cautious_adamw", {"eps": 1e-2}),
    ("batch_adamw", {}),
    ("batch_adamw", {"batch_ratio": 3.0}),
    ("batch_adamw", {"b1": 0.8}),
    ("batch_adamw", {"b2": 0.99}),
    ("batch_adamw", {"eps": 1e-2}),
    ("normuon", {}),
    ("normuon", {"momentum": 0.8}),
    ("normuon", {"newton_schulz": 4}),
    ("normuon", {"coefficients": "polar_express"}),
    ("normuon", {"unit_decay": 0.5}),
    ("normuon", {"per_head": True}),
    ("normuon", {"rms": 0.1}),
    ("normuon", {"b1": 0.8}),
    ("normuon", {"b2": 0.8}),
    ("normuon", {"eps": 1e-2}),
    ("spam", {"interval": 10, "grace": 2}),
    ("spam", {"interval": 10, "grace": 2, "threshold": 2.0}),
    ("spam", {"interval": 10, "grace": 4, "threshold": 2.0}),
    ("spam", {"interval": 3, "grace": 2}),
    ("spam", {"interval": 3, "grace": 2, "rewarm": 3}),
    ("spam", {"interval": 10, "grace": 2, "b1": 0.8}),
    ("spam", {"interval": 10, "grace": 2, "b2": 0.95}),
    ("spam", {"interval": 10, "grace": 2, "eps": 1e-2}),
]


def test_every_rule_and_every_option_changes_the_updates():
    taken = [np.concatenate([u.ravel() for u in jax.tree.leaves(run(rule, **options)[-1])]) for rule, options in RULES]
    for index, one in enumerate(taken):
        for other in range(index):
            assert np.abs(one - taken[other]).max() > 1e-3, (RULES[index], RULES[other])


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("vectors", [True, False])
def test_state_that_parallels_the_parameters_lies_as_they_do(rule, clip, vectors):
    mesh = scale.make_mesh(scale.MeshConfig(fsdp=2, tensor=2))
    whole, parameters = scale.replicated(mesh), scale.shardings(TABLE, mesh)
    values = {"rule": {"method": rule}, "clip": {"method": clip}, "clip_vectors": vectors}
    chain = build(from_config_dict(OptimizerConfig, values), TABLE, 100)
    for transformation in (chain.update, chain.clip):
        state = jax.eval_shape(transformation.init, PARAMETERS)
        found = state_shardings(transformation, state, parameters, whole)
        assert jax.tree.structure(found) == jax.tree.structure(state)
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
            assert isinstance(sharding, NamedSharding)
            sharding.shard_shape(leaf.shape)
    moments = jax.tree.leaves(state_shardings(chain.update, chain.update.init(PARAMETERS), parameters, whole))
    assert sum(s == parameters["q"] and s != whole for s in moments) >= 1
