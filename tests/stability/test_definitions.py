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


@pytest.fixture
def planted():
    """2,400 values of noise, 95 of them spikes of 6 to 60 standard deviations, and which."""
    dice = np.random.default_rng(1)
    values = 3 + 0.1 * dice.standard_normal(2400)
    at = np.sort(dice.choice(np.arange(200, 2400), 95, replace=False))
    values[at] += 0.1 * np.exp(dice.uniform(np.log(6), np.log(60), 95))
    return values, at


@pytest.mark.parametrize(("name", "rule"), [("OLMo 2, winsorised", "olmo2"), ("SkipStep, winsorised", "skip_step")])
def test_rules_of_the_step(noisy, name, rule):
    wanted = np.flatnonzero(exceeds(expected(noisy, RULES[rule].window), RULES[rule]))
    assert flags(name, noisy) == wanted.tolist() and len(wanted) > 1


def test_olmo_2_as_published(noisy, planted):
    """More than 7 standard deviations from the mean of the last 1,000 values, taken in whole."""
    for values in (noisy, planted[0], -noisy):
        before = pd.Series(values).shift(1).rolling(1000, min_periods=64)
        wanted = np.flatnonzero(np.abs(values - before.mean()) > 7 * before.std(ddof=0))
        assert flags("OLMo 2", values) == wanted.tolist() and len(wanted) > 1


def test_skip_step_as_published(noisy, planted):
    """What OLMo-core's SkipStepOptimizer skips: its `get_step_factor`, written again, fed one loss after the other."""

    def skipped(losses, length=128, factor=6):
        if len(losses) < length // 2:
            return False
        before = pd.Series(losses[:-1])
        return losses[-1] - before.mean() > factor * before.std()  # torch.std_mean takes the sample's too

    for values in (noisy, planted[0]):
        wanted = [i for i in range(len(values)) if skipped(values[max(0, i - 128) : i + 1])]
        assert flags("SkipStep", values) == wanted and len(wanted) > 1


@pytest.mark.parametrize("name", ["OLMo 2", "SkipStep"])
def test_winsorised_windows_flag_spikes_that_whole_ones_hide(planted, name):
    values, at = planted
    published, winsorised = (set(flags(each, values)) & set(at) for each in (name, f"{name}, winsorised"))
    assert len(published) < 0.75 * len(winsorised)
    assert len(winsorised - published) > 15 and len(winsorised) < len(at)


@pytest.mark.parametrize("length", [63, 64, 128, 129, 1000, 1001, 4097, 5200])
def test_windows_of_every_length(length):
    """The ends of windows and of chunks: a spike is put where each begins to count."""
    values = 3 + 0.1 * np.random.default_rng(length).standard_normal(length + 1)
    values[-1] = 9
    assert (flags("OLMo 2", values) == [length]) == (length >= 64)
    assert flags("SkipStep", values) == [length]


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
    of_broken = DEFINITIONS[name].flags(broken)
    assert not of_broken[~np.isfinite(broken)].any()
    np.testing.assert_array_equal(of_broken[np.isfinite(broken)], DEFINITIONS[name].flags(noisy))
    assert nonfinite(broken) == 3


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("values", [[], [2.0], [np.nan], [1.0] * 300])
def test_short_and_constant_series_flag_nothing(name, values):
    assert flags(name, values) == []
