"""Faults of every kind, at every bad moment, under every policy: what is skipped, what stays finite, what is seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import scale
from jaxstab.optimize import Hypers
from jaxstab.train.config import default_config, resolve
from jaxstab.train.packed import unpack
from jaxstab.train.program import build
from tests.train import faults

STEPS, WARMUP, MARK, FIRST = 150, 20, 26, 90  # FIRST: a step at which the rule is at work
NONFINITE, SPIKES = ("nan_loss", "inf_gradient"), ("huge_gradient",)
MOMENTS = {"the start": [1], "warm-up": [10], "later": [FIRST], "twice": [FIRST, FIRST + 1]}


def config_of(policy, accumulation, max_skips=4):
    values = default_config()
    values.model.update(width=8, layers=2, heads=2, vocabulary=MARK + 4, max_length=8, remat="none")
    values.reparam.method = "sigma_reparam"
    values.optimizer.update(warmup=WARMUP, learning_rate=3e-3)
    values.data.length = 8
    values.train.update(batch_size=4, accumulation=accumulation, steps=STEPS, loss_chunk=8)
    values.stability.update(on_spike=policy, on_nonfinite=policy, max_skips=max_skips)
    values.checkpoint.update(every=100, keep_last=3)
    return resolve(values)


@functools.cache
def program_of(policy, accumulation=1, max_skips=4):
    with pytest.MonkeyPatch.context() as patch:
        faults.install(patch.setattr, MARK)
        program = build(config_of(policy, accumulation, max_skips))
        tokens = jax.ShapeDtypeStruct((4, 9), jnp.int32, sharding=scale.batch_sharding(program.setup.mesh))
        return program, program.step.lower(program.abstract_state, tokens, hypers(program)).compile()


def hypers(program):
    rates = Hypers(jnp.float32(3e-3), jnp.float32(0.01), jnp.float32(np.inf))
    return jax.device_put(rates, scale.replicated(program.setup.mesh))


def batch(number):
    """Batch `number`, counted from 1: squares modulo a prime below the marks, which can be learnt."""
    start = 36 * number
    return (np.arange(start, start + 36, dtype=np.int64) ** 2 % 23).astype(np.int32).reshape(4, 9)


def run(policy, marks=(), accumulation=1, left_out=(), steps=STEPS, max_skips=4):
    """Trains on batches 1 to `steps`, hurt as `marks` {number: kind} say; returns the state and all scalars."""
    program, step = program_of(policy, accumulation, max_skips)
    state, told = program.init(0), {}
    for number in range(1, steps + 1):
        if number in left_out:
            continue
        tokens = batch(number)
        if kind := dict(marks).get(number):
            tokens[-1, 0] = MARK + faults.KINDS.index(kind)
        tokens = jax.device_put(tokens, scale.batch_sharding(program.setup.mesh))
        state, metrics = step(state, tokens, hypers(program))
        told[number], _ = unpack(metrics)
    return jax.device_get(state), told


def flagged(told, name):
    return [number for number, scalars in told.items() if scalars[name]]


def assert_same(state, other):
    jax.tree.map(np.testing.assert_array_equal, without_counts(state), without_counts(other))


def without_counts(state):
    """All that a skipped step must leave as it was: its being one in a row is known, of course."""
    return state._replace(guard=state.guard.windows)


def without_spikes(state):
    return state._replace(guard=state.guard._replace(windows=state.guard.windows._replace(spikes=None)))


def assert_finite(tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", NONFINITE)
def test_what_is_not_finite_costs_exactly_its_steps_under_skip(kind, moment, accumulation):
    bad = MOMENTS[moment]
    state, told = run("skip", dict.fromkeys(bad, kind), accumulation)
    assert flagged(told, "train/skipped") == bad
    assert [number for number, scalars in told.items() if not scalars["train/finite"]] == bad
    assert_finite(state)
    assert state.step == STEPS - len(bad)
    assert_same(state, run("skip", (), accumulation, left_out=bad)[0])


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_spike_costs_exactly_its_steps_under_skip_once_the_rule_is_at_work(moment):
    bad = MOMENTS[moment]
    state, told = run("skip", dict.fromkeys(bad, "huge_gradient"))
    assert_finite(state)
    if bad[0] < FIRST:
        assert flagged(told, "train/spike") == [], "64 values come first"
        assert state.step == STEPS
        return
    assert flagged(told, "train/spike") == flagged(told, "train/skipped") == bad
    expected, _ = run("skip", left_out=bad)
    assert state.guard.windows.spikes[1] == len(bad) + expected.guard.windows.spikes[1], "in the spike score"
    assert_same(without_spikes(state), without_spikes(expected))


@pytest.mark.parametrize(("first", "second"), [("huge_gradient", "nan_loss"), ("nan_loss", "huge_gradient")])
def test_a_fault_just_after_another_and_fifty_steps_later_is_seen(first, second):
    marks = {FIRST: first, FIRST + 1: second, FIRST + 51: "huge_gradient"}
    state, told = run("skip", marks)
    spikes = [number for number, kind in marks.items() if kind == "huge_gradient"]
    assert flagged(told, "train/spike") == spikes
    assert flagged(told, "train/skipped") == sorted(marks)
    assert_finite(state)


def test_log_takes_spikes_and_sees_the_next():
    marks = dict.fromkeys([FIRST, FIRST + 1, FIRST + 51], "huge_gradient")
    state, told = run("log", marks)
    assert flagged(told, "train/spike") == sorted(marks) and not flagged(told, "train/skipped")
    assert state.step == STEPS
    assert_finite(state)


def test_log_of_what_is_not_finite_keeps_the_statistics():
    state, told = run("log", {FIRST: "inf_gradient"})
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.raw)), "it was asked for"
    assert_finite(state.guard)
    assert state.guard.windows.taken == FIRST - 1
    assert not any(scalars["train/finite"] for number, scalars in told.items() if number >= FIRST)


@pytest.mark.parametrize("policy", ["stop", "rollback"])
@pytest.mark.parametrize("kind", [*NONFINITE, *SPIKES, "matrix"])
def test_a_host_that_has_to_answer_finds_the_state_before_the_step(policy, kind):
    state, told = run(policy, {FIRST: kind, FIRST + 1: "nan_loss"}, steps=FIRST + 3)
    assert flagged(told, "train/halted") == [FIRST, FIRST + 1, FIRST + 2, FIRST + 3]
    before, _ = run(policy, steps=FIRST - 1)
    assert_finite(state)
    if kind == "matrix":  # which is of the state before, and what the roll-back is for
        state, before = state._replace(raw=None), before._replace(raw=None)
    assert_same(state, before)


def test_a_matrix_that_was_hurt_is_a_new_level_after_some_skips():
    """Skipping can't mend the state; it gives up after `max_skips`, and sees the next fault."""
    state, told = run("skip", {FIRST: "matrix", FIRST + 50: "nan_loss"}, max_skips=3)
    assert flagged(told, "train/skipped")[:3] == [FIRST, FIRST + 1, FIRST + 2]
    assert not told[FIRST + 3]["train/skipped"] and told[FIRST + 3]["train/spike"]
    assert FIRST + 50 in flagged(told, "train/skipped")
    assert not told[FIRST + 49]["train/spike"], "a level that lasts is the usual one"
    assert_finite(state)


def test_too_much_in_a_row_that_is_not_finite_halts():
    bad = range(FIRST, FIRST + 10)
    state, told = run("skip", dict.fromkeys(bad, "nan_loss"), max_skips=3)
    assert flagged(told, "train/halted")[0] == FIRST + 3
    assert_finite(state)
    assert_same(state, run("skip", steps=FIRST - 1, max_skips=3)[0])
