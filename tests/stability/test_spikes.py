"""The rules of spikes against NumPy in float64, the same in the step and over a series."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.stability import deviations_over, guard, spikes
from jaxstab.stability.config import StabilityConfig


def expected(values, window):
    """Deviations in float64; what is taken in is brought to 7 standard deviations of the last 128 values."""
    z, past = np.zeros(len(values)), []
    for i, value in enumerate(values):
        if not np.isfinite(value):
            continue
        if len(past) >= 64:
            z[i] = (value - np.mean(past[-window:])) / np.std(past[-window:])
            center, reach = np.mean(past[-128:]), 7 * np.std(past[-128:])
            value = min(max(value, center - reach), center + reach)
        past.append(value)
    return z


@pytest.mark.parametrize("rule", spikes.RULES)
def test_deviations_are_those_of_the_definition(rule):
    dice = np.random.default_rng(0)
    values = 3 + np.exp(-np.arange(1500) / 10) + 0.05 * dice.normal(size=1500)
    values[[200, 1200]] += 2
    values[[10, 300, 301]] = np.nan, np.inf, -np.inf
    found = deviations_over(values)[rule]
    np.testing.assert_allclose(found, expected(values, spikes.RULES[rule].window), rtol=1e-3, atol=1e-3)
    flags = np.flatnonzero(np.asarray(spikes.exceeds(found, spikes.RULES[rule])))
    assert flags.tolist() == [200, 1200]


def test_a_fall_is_a_spike_for_olmo_2_alone():
    values = 3 + 0.05 * np.random.default_rng(0).normal(size=300)
    values[250] -= 2
    found = deviations_over(values)
    assert [spikes.exceeds(found[name], rule)[250] for name, rule in spikes.RULES.items()] == [False, True]


def test_one_spike_does_not_hide_the_next_and_a_level_that_lasts_is_followed():
    values = 3 + 0.05 * np.random.default_rng(0).normal(size=600)
    values[[200, 201, 202, 203]] += 1000
    values[250] += 1
    values[400:] += 2
    spiking = np.flatnonzero(spikes.exceeds(deviations_over(values)["skip_step"], spikes.RULES["skip_step"]))
    assert {200, 201, 202, 203, 250} <= {*spiking} and spiking.max() < 450


def test_a_constant_series_has_no_spikes():
    found = deviations_over(np.full(200, 3.3))
    assert not any(spikes.exceeds(found[name], rule).any() for name, rule in spikes.RULES.items())


@functools.partial(jax.jit, static_argnums=0)
def judged(config, state, readings):
    """A step of finite loss and gradient: judged before its update, and once the update's norm is known."""
    verdict = guard.judge(config, state, readings.at[2].set(jnp.nan), jnp.array(True))
    return guard.advance(config, state, verdict, readings)


def test_the_step_says_what_the_series_says():
    dice = np.random.default_rng(1)
    series = 1 + 0.1 * dice.normal(size=(200, 3)).astype(np.float32)
    series[150, 1] = 9
    state = guard.start()
    told, flags = [], []
    for row in series:
        told.append(guard.detector_metrics(state, jnp.asarray(row), len(told)))
        state, verdict = judged(StabilityConfig(), state, jnp.asarray(row))
        flags.append(bool(verdict.spike))
    for index, name in enumerate(spikes.QUANTITIES):
        found = [step[f"stability/deviation/{name}"] for step in told]
        np.testing.assert_allclose(found, deviations_over(series[:, index])["skip_step"], rtol=1e-4, atol=1e-4)
    assert np.flatnonzero(flags).tolist() == [150]
    assert spikes.scores(state.windows, 200).tolist() == pytest.approx([0, 0.5, 0])


def test_a_spike_is_foretold_where_both_norms_rise():
    dice = np.random.default_rng(2)
    state = guard.start()
    for row in 1 + 0.1 * dice.normal(size=(150, 3)).astype(np.float32):
        state, _ = judged(StabilityConfig(), state, jnp.asarray(row))
    raised = {"neither": [1, 1, 1], "gradient": [1, 1.4, 1], "update": [1, 1, 1.4], "loss": [1.4, 1, 1]}
    for which, readings in {**raised, "both": [1, 1.4, 1.4], "unknown": [1, 1.4, np.nan]}.items():
        metrics = guard.detector_metrics(state, jnp.array(readings), 150)
        assert metrics["stability/foretold"] == (which == "both"), which


def test_spikes_of_skipped_steps_count_in_the_score():
    state = guard.start()
    for loss in [*np.linspace(1, 1.1, 100), 50, 1.05]:
        state, verdict = judged(StabilityConfig(on_spike="skip"), state, jnp.full(3, loss, jnp.float32))
    assert state.windows.taken == 101 and verdict.taken
    assert guard.detector_metrics(state, jnp.ones(3), 102)["stability/spike_score/loss"] == pytest.approx(100 / 102)


@pytest.mark.parametrize("response", ["log", "skip", "rollback", "stop"])
def test_an_update_that_spikes_or_is_not_finite_halts_what_follows(response):
    """It has been taken by the time that its norm is known."""
    config = StabilityConfig(on_spike=response, on_nonfinite=response, watch=("update_norm",))
    before = guard.start()
    for value in np.linspace(1, 1.1, 100):
        before, _ = judged(config, before, jnp.full(3, value, jnp.float32))
    after, verdict = judged(config, before, jnp.array([1, 1, 50.0]))
    assert verdict.taken and verdict.spike and after.halted == (response in ("rollback", "stop"))
    after, verdict = judged(config, before, jnp.array([1, 1, jnp.nan]))
    assert verdict.taken and not verdict.finite and after.halted == (response != "log")
