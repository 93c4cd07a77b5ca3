"""Clipping over several steps, against the authors' own code and the formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.optimize import CLIPS
from jaxstab.optimize.clipping import adagc, global_norm, none, zclip
from jaxstab.optimize.recent_norms import recent_norms
from jaxstab.table import Row

MATRIX, VECTOR = np.array([[0.3, -0.4, 0.5], [0.1, 0.2, -0.6]]), np.array([0.25, -0.75])


def row(name, role, shape, stacked):
    return Row(name, role, shape, (None,) * len(shape), stacked)


PAIR = {"matrix": row("matrix", "up_proj", (2, 3), False), "vector": row("vector", "norm", (2,), False)}
STACKED = {
    "q": row("q", "q_proj", (2, 3, 5), True),
    "gate": row("gate", "gate", (2,), True),
    "norm": row("norm", "norm", (2, 3), True),
    "head": row("head", "lm_head", (3, 7), False),
}


def pair(matrix, vector):
    return {"matrix": jnp.asarray(matrix * MATRIX), "vector": jnp.asarray(vector * VECTOR)}


def steps(transformation, gradients):
    """The clipped gradients of every step and the last state."""
    state, clipped = transformation.init(gradients[0]), []
    for gradient in gradients:
        out, state = jax.jit(transformation.update)(gradient, state)
        clipped.append(jax.tree.map(np.asarray, out))
    return clipped, state


def whole_norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.float64(leaf))) for leaf in jax.tree.leaves(tree)))


SPIKES = [1.0, 0.8, 1.2, 0.9, 1.1, 1.05, 0.95, 6.0, 1.0, 1.3, 0.7, 30.0, 1.0, 0.9]
# Norms after ZClip of bluorion-com/ZClip at 584ce4f: alpha 0.9, z_thresh 2, warmup_steps 5, in float64.
FREE = "1.238951169 0.991160935 1.486741403 1.115056052 1.362846286 1.300898728 1.177003611 "
FREE += "1.254810286 1.238951169 1.4631314 0.867265819 1.226384067 1.238951169 1.115056052"
BOUND = "0.999999193 0.991160935 0.999999327 0.999999103 0.999999266 0.999999231 0.99999915 "
BOUND += "0.999999865 0.999999193 0.999999379 0.867265819 0.999999973 0.999999193 0.999999103"
ZCLIP = {0.0: [float(norm) for norm in FREE.split()], 1.0: [float(norm) for norm in BOUND.split()]}


@pytest.mark.parametrize("max_norm", ZCLIP)
def test_zclip_gives_the_norms_of_the_authors_code(max_norm):
    transformation = zclip(threshold=2.0, decay=0.9, warmup=5, max_norm=max_norm)(PAIR)
    clipped, state = steps(transformation, [pair(size, size) for size in SPIKES])
    np.testing.assert_allclose([whole_norm(tree) for tree in clipped], ZCLIP[max_norm], rtol=3e-6)
    np.testing.assert_allclose([state.mean, state.variance], [1.2137029216679025, 0.025070647867453874], rtol=1e-5)
    np.testing.assert_allclose(clipped[7]["vector"], VECTOR * ZCLIP[max_norm][7] / whole_norm(pair(1, 1)), rtol=1e-5)


def test_adagc_gives_the_norms_of_the_authors_code():
    # lishuai-97/AdaGC at 32c249f: clip_ratio 1.05, beta 0.9, start_clip_steps 3, global norm 0.9, in float64.
    sizes = [(1.0, 1.0), (0.8, 1.3), (1.2, 0.6), (0.9, 0.9), (3.0, 1.0), (1.05, 5.0), (0.5, 0.2), (1.4, 0.3)]
    matrix = [0.692960796, 0.536549448, 0.831444631, 0.563376264, 0.566193607, 0.569024206, 0.476969601, 0.564764293]
    vector = [0.574285667, 0.722574165, 0.344526514, 0.361752331, 0.363561144, 0.365379319, 0.158113883, 0.237170825]
    clipped, state = steps(adagc(ratio=1.05, decay=0.9, warmup=3, max_norm=0.9)(PAIR), [pair(*size) for size in sizes])
    np.testing.assert_allclose([np.linalg.norm(tree["matrix"]) for tree in clipped], matrix, rtol=1e-5)
    np.testing.assert_allclose([np.linalg.norm(tree["vector"]) for tree in clipped], vector, rtol=1e-5)
    expected = [state.expected["matrix"].item(), state.expected["vector"].item()]
    np.testing.assert_allclose(expected, [0.5405605137888928, 0.32122077027419826], rtol=1e-5)


def draws():
    rng = np.random.default_rng(0)
    gradients = [
        {name: rng.standard_normal(row.shape).astype(np.float32) for name, row in STACKED.items()} for _ in range(8)
    ]
    gradients[6]["q"][1] *= 50  # one layer of a stack spikes alone
    return gradients


def test_adagc_clips_every_layer_of_a_stack_by_its_own_norm():
    gradients = draws()
    clipped, _ = steps(adagc(ratio=1.2, decay=0.8, warmup=2, max_norm=1.5)(STACKED), gradients)
    for name, row in STACKED.items():
        for layer in range(2 if row.stacked else 1):
            expected = np.inf
            for t, tree in enumerate(gradients):
                gradient = np.float64(tree[name][layer] if row.stacked else tree[name])
                size = np.linalg.norm(gradient)
                factor = min(1, 1.5 / whole_norm(tree)) if t < 2 else min(1, 1.2 * expected / size)
                expected = min(expected, size * factor) if t < 2 else 0.8 * expected + 0.2 * size * factor
                found = clipped[t][name][layer] if row.stacked else clipped[t][name]
                np.testing.assert_allclose(found, factor * gradient, rtol=1e-5)


def test_adagc_without_warmup_expects_the_first_norm():
    clipped, _ = steps(adagc(ratio=1.0, decay=0.5, warmup=0)(PAIR), [pair(5, 1), pair(10, 0.5), pair(10, 1)])
    sizes = [np.linalg.norm(tree["matrix"]) / np.linalg.norm(MATRIX) for tree in clipped]
    np.testing.assert_allclose(sizes, [5, 5, 5], rtol=1e-6)
    sizes = [np.linalg.norm(tree["vector"]) / np.linalg.norm(VECTOR) for tree in clipped]
    np.testing.assert_allclose(sizes, [1, 0.5, 0.75], rtol=1e-6)


def test_adagc_lets_the_first_gradient_behind_a_zero_gate_through():
    clipped, state = steps(adagc(warmup=2)(PAIR), [pair(0, 0.1), pair(0, 0.1), pair(0.3, 0.1), pair(0.3, 0.1)])
    np.testing.assert_allclose(clipped[2]["matrix"], 0.3 * MATRIX, rtol=1e-6)
    np.testing.assert_allclose(state.expected["matrix"].item(), 0.3 * np.linalg.norm(MATRIX), rtol=1e-6)


def test_global_norm_scales_the_whole_gradient():
    tree = draws()[0]
    (clipped,), _ = steps(global_norm(0.5)(STACKED), [tree])
    for name in STACKED:
        np.testing.assert_allclose(clipped[name], tree[name] * 0.5 / whole_norm(tree), rtol=1e-5)


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_what_is_not_finite_never_enters_a_running_statistic(name, bad, after):
    # Two updates of warmup, so that the bad gradient comes before the first, within the warmup, and after it.
    warmups = {"adagc": {"warmup": 2}, "zclip": {"warmup": 2}}
    transformation = CLIPS[name](**warmups.get(name, {}))(STACKED)
    gradients = draws()
    _, before = steps(transformation, gradients[: after + 1])
    _, state = transformation.update(jax.tree.map(lambda g: jnp.full_like(g, bad), gradients[0]), before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        if jnp.issubdtype(old.dtype, jnp.floating):
            np.testing.assert_array_equal(old, new)


OPTIONS = [
    ("none", {}),
    ("global_norm", {}),
    ("global_norm", {"max_norm": 0.5}),
    ("adagc", {}),
    ("adagc", {"ratio": 1.2}),
    ("adagc", {"decay": 0.5}),
    ("adagc", {"warmup": 3}),
    ("adagc", {"max_norm": 0.5}),
    ("zclip", {}),
    ("zclip", {"threshold": 1.0}),
    ("zclip", {"decay": 0.5}),
    ("zclip", {"warmup": 5}),
    ("zclip", {"max_norm": 6.0}),
]


def test_every_clip_and_every_option_changes_the_gradients():
    short = {"adagc": {"warmup": 2}, "zclip": {"warmup": 2, "max_norm": 0.0}}
    gradients = [*draws(), *draws()]
    gradients[-1] = jax.tree.map(lambda g: 20 * g, gradients[-1])

    def clipped(name, options):
        trees, _ = steps(CLIPS[name](**{**short.get(name, {}), **options})(STACKED), gradients)
        return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(trees)])

    found = [clipped(name, options) for name, options in OPTIONS]
    for index, one in enumerate(found):
        for other in range(index):
            assert np.abs(one - found[other]).max() > 1e-4, (OPTIONS[index], OPTIONS[other])


def test_none_leaves_the_gradient_as_it_is():
    gradients = draws()
    for clipped, gradient in zip(steps(none()(STACKED), gradients)[0], gradients, strict=True):
        jax.tree.map(np.testing.assert_array_equal, clipped, gradient)


def test_recent_norms_are_those_of_the_last_steps():
    sizes = [1.0, 1.2, 0.9, 1.1, 1.0, 5.0, np.nan, 1.1, 9.0, 1.0]
    clipped, state = steps(recent_norms(sigmas=1.5, window=4)(PAIR), [pair(size, size) for size in sizes])
    unit, known = whole_norm(pair(1, 1)), []
    for size, tree in zip(sizes, clipped, strict=True):
        recent = np.array(known[-4:])
        limit = recent.mean() + 1.5 * recent.std() if len(recent) == 4 else np.inf
        np.testing.assert_allclose(whole_norm(tree), min(size * unit, limit) if size == size else np.nan, rtol=1e-5)
        known += [size * unit] if size == size else []
    assert state.known == 9
