"""The race of precursors: a planted one wins, and what tells nothing warns as often as it alarms falsely."""

import numpy as np
import pytest
import scipy.stats

from benchmarks import foretell, foretold, tev

LENGTH, EVENT = 260, 150


def runs(lead, count=40):
    """Runs half of which have an event; "update norm" steps up `lead` steps before it, all else is noise."""
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        signals = {name: random.normal(size=LENGTH) for name in foretell.SIGNALS}
        event = EVENT + number if number % 2 else None
        if event:
            signals["update norm"][event - lead : event] += 20
        made.append(foretell.Run(str(number), event, signals))
    return made


def test_a_planted_precursor_wins_and_noise_warns_as_often_as_it_alarms():
    results = foretell.race(runs(lead=12), horizon=50, rate=0.05)
    by = {(each.signal, each.form): each for each in results}
    best = by["update norm", "level"]
    assert results[0].signal == "update norm" and best.warned.mean == 1.0
    assert 12 <= best.steps.mean < 17  # now and then a false alarm comes first
    for signal in ("loss (SkipStep)", "stable rank"):
        noise = by[signal, "level"]
        assert noise.warned.mean == pytest.approx(noise.false_alarms, abs=0.12)
    assert np.mean([each.false_alarms for each in results]) == pytest.approx(0.05, abs=0.03)


def test_an_event_is_the_first_loss_far_above_the_level_before():
    falling = np.linspace(8, 4, 100)
    assert foretell.event_of(falling) is None
    odd = falling.copy()
    odd[[60, 63]] = 9
    assert foretell.event_of(odd) is None
    risen = falling.copy()
    risen[60:] = 7
    assert foretell.event_of(risen) == 60
    risen[60:] = falling[60:]
    risen[70] = np.nan
    assert foretell.event_of(risen) == 70


def test_both_norms_rise_where_the_lower_does():
    random = np.random.default_rng(0)
    signals = {name: random.normal(size=LENGTH) for name in foretell.SIGNALS}
    signals["gradient norm (SkipStep)"][[100, 120]] = 50
    signals["update norm"][[110, 120]] = 50
    told = foretell.told_of(foretell.Run("", None, signals), foretell.BOTH, "rise")
    assert np.flatnonzero(told > 5).tolist() == [120]


def test_the_warning_of_a_run_is_judged_by_events_and_by_stretches_without():
    early, late, none = (np.zeros(LENGTH) for _ in range(3))
    early[130] = late[80] = none[100] = 1
    runs = [
        foretell.Run(name, event, {foretell.WARNING: warning})
        for name, event, warning in [("warned", 150, early), ("too early", 150, late), ("falsely", None, none)]
    ]
    result = foretold.judged("all", runs, horizon=50)
    assert (result.events, result.warned[0], result.windows, result.alarmed[0]) == (2, 0.5, 2, 0.5)
    assert result.median_steps == 10  # of 20, and 0 where it came too early
    assert foretold.share_of([0] * 20)[1:] == pytest.approx((0, 1 - 0.025 ** (1 / 20)))


def test_a_rise_is_that_of_measured_values_however_long_each_stands():
    values = np.repeat(np.random.default_rng(0).normal(size=40), 5)
    values[150:155] = 50
    told = foretell.rise(values)
    new = values[::5]
    expected = (new[30] - new[:30].mean()) / new[:30].std()
    np.testing.assert_allclose(told[150:155], expected, rtol=1e-4)
    assert np.isnan(told[:70]).all()


def test_a_value_is_as_old_as_the_last_measurement():
    at, values = np.array([1, 10]), np.array([[1.0, 3.0], [5.0, 2.0]])
    told = foretell.over_steps(np.arange(1, 13), [(at, values)], np.max)
    assert told.tolist() == [3.0] * 9 + [5.0] * 3


def test_a_proxy_that_only_tells_methods_apart_has_no_correlation_within_them():
    random = np.random.default_rng(0)
    rows = [
        {"variant": name, "tev_embed_tokens": level + random.normal(), "gradient_variance": level + random.normal()}
        for name, level in (("a", 0), ("b", 10), ("c", 20))
        for _ in range(15)
    ]
    (result,) = tev.table(rows)
    x, y = ([row[name] for row in rows] for name in ("tev_embed_tokens", "gradient_variance"))
    assert result["over all runs"].mean == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert result["over all runs"].low > 0.8
    assert result["within methods"].low < 0 < result["within methods"].high


def test_a_proxy_over_time_is_ranked_in_each_run_by_itself():
    steps = np.array([1, 20, 40, 60, 80, 100])
    variance = np.array([9.0, 1, 2, 3, 4, 5])
    measured = {"stability/gradient_variance/up_proj": (steps, np.stack([variance, 2 * variance], axis=1))}
    lines = [
        {"step": step, **dict.fromkeys(tev.PREDICTORS.values(), float(step)), "train/grad_norm": -float(step)}
        for step in range(1, 101)
    ]
    ranks = tev.over_time(lines, measured)
    assert ranks["tev_embed_tokens"] == pytest.approx(1) and ranks["grad_norm"] == pytest.approx(-1)
    assert tev.over_time(lines, {}) == {}


def test_at_one_rate_the_first_seeds_methods_are_ranked_among_each_other():
    """A rate moves predictor and target against each other, methods at one rate move them together."""
    rows = [
        {
            "seed": seed,
            "learning_rate": rate,
            "gradient_variance": step - 100 * rate,
            **dict.fromkeys(tev.PREDICTORS, level),
        }
        for rate, methods in ((0.1, 12), (1.0, 12), (2.0, 3))
        for step in range(methods)
        for seed, level in ((1, step + 100 * rate), (2, -step))
    ]
    of_rates = tev.at_each_rate(rows)
    assert of_rates == {
        f"{rate} (12 methods)": pytest.approx(dict.fromkeys(tev.PREDICTORS, 1.0)) for rate in ("0.1", "1")
    }
