"""The optimizer against optax.adamw and against the papers' update rules in float64 NumPy."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import table
from jaxstab.config import ConfigError
from jaxstab.optimize import CLIPS, Hypers, OptimizerConfig, build

STEPS = 6
SHAPES = {"layers": {"q": (2, 3, 3), "norm": (2, 3), "gate": (2,)}, "head": (3, 5), "bias": (5,)}
ROLES = {"q$": "q_proj", "norm": "norm", "head": "lm_head", "bias": "bias", "gate": "gate"}


def is_shape(node):
    return isinstance(node, tuple)


TABLE = table.read(
    jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SHAPES, is_leaf=is_shape), ROLES
)


def normal(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: rng.normal(size=shape).astype(np.float32), SHAPES, is_leaf=is_shape)


START, GRADIENTS = normal(0), [normal(1 + step) for step in range(STEPS)]


def config_of(**changes):
    return dataclasses.replace(OptimizerConfig(warmup=2), **changes)


def run(config, rows=TABLE, hypers=None, gradients=GRADIENTS):
    """The parameters after every update."""
    optimizer = build(config, rows, STEPS)
    hypers = hypers or Hypers(config.learning_rate, config.weight_decay)

    @jax.jit
    def step(parameters, state, gradient):
        updates, state = optimizer.update.update(gradient, state, parameters, hypers=hypers)
        return optax.apply_updates(parameters, updates), state

    trail, parameters, state = [], START, optimizer.update.init(START)
    for gradient in gradients:
        parameters, state = step(parameters, state, gradient)
        trail.append(parameters)
    return trail


def schedule_of(step, warmup=2, floor=0.1):
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * (1 + np.cos(np.pi * (step - warmup) / (STEPS - warmup))) / 2


def by_hand(leaf, gradients, config, *, rate=1.0, decay=0.0, eps=1.0):
    """AdamW for one leaf (Loshchilov and Hutter 2019, algorithm 2), with the row's multipliers."""
    adam = config.rule.adamw
    w, m, v = np.float64(leaf), 0.0, 0.0
    for step, gradient in enumerate(gradients):
        g = np.float64(gradient)
        m, v = adam.b1 * m + (1 - adam.b1) * g, adam.b2 * v + (1 - adam.b2) * g * g
        unit = (m / (1 - adam.b1 ** (step + 1))) / (np.sqrt(v / (1 - adam.b2 ** (step + 1))) + eps * adam.eps)
        pull = decay * config.weight_decay * w
        peak = config.learning_rate
        w = w - schedule_of(step) * rate * (peak * unit + pull if config.independent_decay else peak * (unit + pull))
    return w


def check_by_hand(config, rows=TABLE, decays=lambda row: row.decay):
    last = run(config, rows)[-1]

    def check(row, start, found, *gradients):
        expected = by_hand(start, gradients, config, rate=row.learning_rate, decay=decays(row), eps=row.eps)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6, err_msg=row.path)

    jax.tree.map(check, rows, START, last, *GRADIENTS)


def test_it_is_optax_s_adamw():
    config = config_of(learning_rate=0.03, weight_decay=0.2)
    is_matrix = jax.tree.map(lambda row: row.is_matrix, TABLE)
    reference = optax.adamw(
        lambda step: 0.03 * build(config, TABLE, STEPS).schedule(step),
        0.9,
        0.95,
        1e-8,
        weight_decay=0.2,
        mask=is_matrix,
    )
    parameters, state = START, reference.init(START)
    for gradient, found in zip(GRADIENTS, run(config), strict=True):
        updates, state = reference.update(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), found, parameters)


@pytest.mark.parametrize("independent", [False, True], ids=["decoupled", "independent"])
def test_it_is_the_papers_rule(independent):
    check_by_hand(config_of(learning_rate=0.03, weight_decay=0.2, independent_decay=independent))


def test_adam_s_constants_are_the_config_s():
    adam = dataclasses.replace(OptimizerConfig().rule.adamw, b1=0.5, b2=0.8, eps=0.3)
    rule = dataclasses.replace(OptimizerConfig().rule, adamw=adam)
    check_by_hand(config_of(learning_rate=0.03, rule=rule))


def test_a_row_s_multipliers_are_its_own():
    adam = dataclasses.replace(OptimizerConfig().rule.adamw, eps=1e-2)
    rule = dataclasses.replace(OptimizerConfig().rule, adamw=adam)
    config = config_of(learning_rate=0.03, weight_decay=0.2, rule=rule)
    rows = jax.tree.map(lambda row: row, TABLE)
    rows["head"] = rows["head"].replace(learning_rate=0.25)
    rows["layers"]["q"] = rows["layers"]["q"].replace(decay=3.0, eps=50.0)
    rows["bias"] = rows["bias"].replace(learning_rate=2.0, eps=0.01)
    check_by_hand(config, rows)
    check_by_hand(dataclasses.replace(config, independent_decay=True), rows)


@pytest.mark.parametrize("factors", [{}, {"gate": 1.0}, {"lm_head": 0.0, "q_proj": 0.25, "gate": 0.02}])
def test_a_role_decays_by_its_factor(factors):
    given = tuple(f"{role}={factor}" for role, factor in factors.items())
    config = config_of(learning_rate=0.03, weight_decay=0.2, decay_factors=given)
    check_by_hand(config, decays=lambda row: factors.get(row.role, float(row.is_matrix)))


@pytest.mark.parametrize("given", ["q_prj=0", "q_proj", "q_proj=much"])
def test_a_mistake_in_decay_factors_is_named(given):
    with pytest.raises(ConfigError, match=re.escape(given)):
        build(config_of(decay_factors=(given,)), TABLE, STEPS)


def test_decay_falls_to_nothing_at_the_end_where_it_is_scheduled():
    zeros = [jax.tree.map(np.zeros_like, START)] * STEPS
    last = run(config_of(learning_rate=0.03, weight_decay=0.2, decay_schedule="linear"), gradients=zeros)[-1]
    factor = np.prod([1 - schedule_of(step) * 0.03 * 0.2 * (1 - step / STEPS) for step in range(STEPS)])
    np.testing.assert_allclose(last["head"], START["head"] * factor, rtol=1e-5)


@pytest.mark.parametrize("name", CLIPS)
def test_vectors_stay_out_of_the_clipping_where_they_are_told_to(name):
    """Matrices are clipped as though there were nothing else, and vectors and gates pass."""
    clip = OptimizerConfig().clip
    soon = dataclasses.replace(clip.recent_norms, window=2, sigmas=0.1)
    clip, was_clipped = dataclasses.replace(clip, method=name, recent_norms=soon), False
    matrices = jax.tree.map(lambda row: row.is_matrix, TABLE)
    alone = jax.tree.map(lambda row: row if row.is_matrix else None, TABLE)
    whole, part = (
        build(config_of(clip=clip, clip_vectors=v), t, STEPS).clip for v, t in ((False, TABLE), (True, alone))
    )
    state, other = whole.init(START), part.init(only(matrices, START))
    for gradient in GRADIENTS:
        clipped, state = whole.update(gradient, state)
        expected, other = part.update(only(matrices, gradient), other)
        jax.tree.map(np.testing.assert_array_equal, only(matrices, clipped), expected)
        vectors = jax.tree.map(lambda is_matrix: not is_matrix, matrices)
        jax.tree.map(np.testing.assert_array_equal, only(vectors, clipped), only(vectors, gradient))
        was_clipped |= not np.array_equal(clipped["head"], gradient["head"])
    assert was_clipped == (name != "none")


def only(mask, tree):
    return jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, tree)


def decay(method):
    return dataclasses.replace(OptimizerConfig().decay, method=method)


def test_adamc_decays_the_blocks_by_the_square_of_the_schedule():
    zeros = [jax.tree.map(np.zeros_like, START)] * STEPS
    last = run(config_of(learning_rate=0.03, weight_decay=0.2, decay=decay("adamc")), gradients=zeros)[-1]
    for name, stacked in (("q", True), ("head", False)):
        factor = np.prod([1 - 0.006 * schedule_of(step) ** (1 + stacked) for step in range(STEPS)])
        now, start = (tree["layers"][name] if stacked else tree[name] for tree in (last, START))
        np.testing.assert_allclose(now, start * factor, rtol=1e-5)


def test_cautious_decay_takes_off_only_what_the_update_takes_off():
    plain, cautious = (
        run(config_of(learning_rate=0.03, weight_decay=0.2, decay=decay(method)))[0]
        for method in ("decoupled", "cautious")
    )
    alone = run(config_of(learning_rate=0.03, weight_decay=0.0))[0]
    moved = np.float64(START["head"]) - alone["head"]
    towards_zero = moved * START["head"] >= 0
    assert 0.2 < towards_zero.mean() < 0.8
    expected = np.where(towards_zero, plain["head"], alone["head"])
    np.testing.assert_allclose(cautious["head"], expected, rtol=1e-6)


def test_on_the_hyperball_norms_stay_and_every_step_is_the_rate_times_the_norm():
    trail = run(config_of(learning_rate=0.03, weight_decay=0.2, decay=decay("hyperball")))
    plain = run(config_of(learning_rate=0.03, weight_decay=0.2))
    before = START
    for step, after in enumerate(trail):
        for w, now in zip(np.float64(before["layers"]["q"]), np.float64(after["layers"]["q"]), strict=True):
            radius, moved = np.linalg.norm(w), np.linalg.norm(now - w)
            np.testing.assert_allclose(np.linalg.norm(now), radius, rtol=1e-5)
            assert moved <= 1.001 * 0.03 * schedule_of(step) * radius
        before = after
    jax.tree.map(np.testing.assert_array_equal, trail[-1]["head"], plain[-1]["head"])  # no hidden matrix: as usual


def test_the_hyperball_follows_the_formula():
    """The first update of Adam is the sign of the gradient, but for eps."""
    (first, *_) = run(config_of(learning_rate=0.03, weight_decay=0.2, decay=decay("hyperball")))
    for w, g, now in zip(*(np.float64(tree["layers"]["q"]) for tree in (START, GRADIENTS[0], first)), strict=True):
        radius, u = np.linalg.norm(w), np.sign(g)
        moved = w - 0.03 * schedule_of(0) * radius * u / np.linalg.norm(u)
        np.testing.assert_allclose(now, radius * moved / np.linalg.norm(moved), rtol=1e-4, atol=1e-6)


def test_decay_alone_shrinks_by_the_rate_or_by_the_schedule():
    """With no gradient W is multiplied by 1 - s_t eta lambda, or by 1 - s_t lambda where decay is independent."""
    zeros = [jax.tree.map(np.zeros_like, START)] * STEPS
    for independent, rate in ((False, 0.03), (True, 1.0)):
        config = config_of(learning_rate=0.03, weight_decay=0.2, independent_decay=independent)
        last = run(config, gradients=zeros)[-1]
        factor = np.prod([1 - schedule_of(step) * rate * 0.2 for step in range(STEPS)])
        np.testing.assert_allclose(last["head"], START["head"] * factor, rtol=1e-5)
        np.testing.assert_array_equal(last["layers"]["norm"], START["layers"]["norm"])


@pytest.mark.parametrize("independent", [False, True], ids=["decoupled", "independent"])
def test_the_rate_is_that_of_the_position_where_one_is_given(independent):
    """A step stands on the schedule where its number is, whatever number of updates was taken before it."""
    config = config_of(learning_rate=0.03, weight_decay=0.2, independent_decay=independent)
    update, hypers = build(config, TABLE, STEPS).update, Hypers(0.03, 0.2)
    state = update.init(START)
    for gradient in GRADIENTS[:2]:
        _, state = update.update(gradient, state, START, hypers=hypers)
    own, next_state = update.update(GRADIENTS[2], state, START, hypers=hypers)
    for position in (0, 2, 4):
        given, same = update.update(GRADIENTS[2], state, START, hypers=hypers._replace(position=np.int32(position)))
        factor = schedule_of(position) / schedule_of(2)
        jax.tree.map(lambda u, v, factor=factor: np.testing.assert_allclose(u, factor * v, rtol=1e-5), given, own)
        jax.tree.map(np.testing.assert_array_equal, same, next_state)


def test_a_grid_of_rates_and_decays_is_one_program():
    """Traced hyper-parameters under vmap: traced once, and each run is the one with constants."""
    config = config_of()
    grid = Hypers(np.float32([1e-3, 1e-2, 0.1]), np.float32([0.0, 0.5, 0.1]))
    optimizer = build(config, TABLE, STEPS)
    traces = []

    @jax.jit
    @jax.vmap
    def train(hypers):
        traces.append(hypers)
        parameters, state = START, optimizer.update.init(START)
        for gradient in GRADIENTS:
            updates, state = optimizer.update.update(gradient, state, parameters, hypers=hypers)
            parameters = optax.apply_updates(parameters, updates)
        return parameters

    found = train(grid)
    train(Hypers(grid.learning_rate * 2, grid.weight_decay))
    assert len(traces) == 1
    for index in range(3):
        alone = run(config, hypers=Hypers(*(float(values[index]) for values in grid[:2])))[-1]
        jax.tree.map(
            lambda many, one, index=index: np.testing.assert_allclose(many[index], one, rtol=1e-5, atol=1e-7),
            found,
            alone,
        )
