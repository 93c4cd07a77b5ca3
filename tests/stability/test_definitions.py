"""Published spike definitions against pandas' windows, our own clipping, and values chosen by hand."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxstab.optimize.clipping import zclip
from jaxstab.stability.definitions import DEFINITIONS, nonfinite
from jaxstab.stability.spikes import RULES, exceeds
from tests.stability.test_spikes import expected


def flags(name, values):
    return np.flatnonzero(DEFINITIONS[name].flags(np.asarray(values, float))).tolist()


@pytest.fixture
def noisy():
    """1,500 values around a falling level, with outliers of many sizes."""
    dice = np.random.default_rng(0)
    values = 3 + 2 * np.exp(-np.arange(1500) / 200) + 0.1 * dice.standard_normal(1500)
    values[dice.choice(1500, 40, replace=False)] += dice.uniform(0.2, 5, 40)
    return values


@pytest.mark.parametrize(("name", "rule"), [("OLMo 2", "olmo2"), ("SkipStep", "skip_step")])
def test_rules_of_the_step(noisy, name, rule):
    wanted = np.flatnonzero(exceeds(expected(noisy, RULES[rule].window), RULES[rule]))
    assert flags(name, noisy) == wanted.tolist() and len(wanted) > 1


def test_the_rolling_median(noisy):
    median = pd.Series(noisy).rolling(201, center=True, min_periods=1).median()
    assert flags("rolling median", noisy) == np.flatnonzero(noisy > median + 0.1).tolist()


def test_zclip_flags_what_zclip_clips(noisy):
    bound = zclip(max_norm=0.0)(None)
    state, clipped = bound.init(None), []
    for index, value in enumerate(noisy[:200]):
        gradient, state = bound.update(jnp.float32(value), state)
        if gradient < 0.9999 * value:
            clipped.append(index)
    assert flags("ZClip", noisy[:200]) == clipped and len(clipped) > 2


def test_kill_loss_spike_waits_for_the_fifth():
    values = np.ones(200)
    values[150:154] = 3  # four in a row
    values[170:177] = 3
    assert flags("KillLossSpike", values) == [174, 175, 176]


def test_ten_times_the_largest():
    assert flags("10x the largest", [1, 9, 2, 90, 91, 950]) == [5]


def test_over_threshold_has_patience():
    assert flags("over threshold", [4, 9, 9, 1, 9, 9, 9, 9, 8]) == [6, 7]


def test_loss_ratio():
    assert flags("loss ratio", [3, 2, 2.41, 2.3, 1, 1.21]) == [2, 5]


@pytest.mark.parametrize("name", DEFINITIONS)
def test_what_is_not_finite_is_left_out(noisy, name):
    """Flags are those of the series without it, and it is flagged by none."""
    broken = np.insert(noisy, [0, 300, 700], [np.inf, np.nan, -np.inf])
    found = DEFINITIONS[name].flags(broken)
    assert not found[~np.isfinite(broken)].any()
    np.testing.assert_array_equal(found[np.isfinite(broken)], DEFINITIONS[name].flags(noisy))
    assert nonfinite(broken) == 3


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("values", [[], [2.0], [np.nan], [1.0] * 300])
def test_short_and_constant_series_flag_nothing(name, values):
    assert flags(name, values) == []
