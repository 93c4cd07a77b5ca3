"""Intervals and differences, against SciPy and closed formulas."""

import numpy as np
import pytest
import scipy.interpolate
import scipy.optimize
import scipy.stats

from jaxstab.compare.statistics import between, estimate, paired, rank_correlation, sensitivity


def test_an_interval_is_scipys_and_holds_the_mean_of_many_draws_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        values = random.normal(3.0, 1.0, 20)
        result = estimate(values)
        assert result.low <= result.mean <= result.high and result.n == 20
        covered += result.low <= 3.0 <= result.high
    assert 0.88 <= covered / 200 <= 0.98  # a percentile bootstrap of 20 values covers a little less than 95%
    student = scipy.stats.t.interval(0.95, 19, np.mean(values), scipy.stats.sem(values))
    np.testing.assert_allclose([result.low, result.high], student, atol=0.12)


def test_few_values_have_no_interval_that_they_cannot_give():
    assert np.isnan(estimate([1.5]).low) and estimate([1.5]).mean == 1.5
    assert estimate([2.0, 2.0]) == (2.0, 2.0, 2.0, 2)
    assert np.isnan(estimate([]).mean) and estimate([]).n == 0


def test_a_difference_is_paired_by_seed_and_its_p_is_that_of_all_signs():
    baseline = {seed: 3.0 + 0.1 * seed for seed in range(1, 9)}
    better = {seed: loss - 0.05 for seed, loss in baseline.items()} | {99: 0.0}  # a seed that the baseline lacks
    result = paired(better, baseline)
    assert result.difference.n == 8
    np.testing.assert_allclose(result.difference.mean, -0.05)
    np.testing.assert_allclose(result.p, 2 / 2**8)  # of 2^8 signs, the two that are all alike
    noise = dict(enumerate(np.random.default_rng(0).normal(size=8), start=1))
    other = dict(enumerate(np.random.default_rng(5).normal(size=8), start=1))
    unlike = paired(noise, other)
    exact = scipy.stats.permutation_test(
        (np.array([noise[seed] - other[seed] for seed in noise]),), np.mean, permutation_type="samples"
    )
    np.testing.assert_allclose(unlike.p, exact.pvalue)
    assert unlike.p > 0.05
    assert np.isnan(paired({1: 2.0}, {1: 3.0}).p)


@pytest.mark.parametrize("diverged", [np.nan, np.inf, 11.0])
def test_sensitivity_is_the_mean_excess_over_the_best_with_divergence_at_the_initial_loss(diverged):
    losses = {1e-3: 4.0, 3e-3: 3.0, 1e-2: 3.5, 1e-1: diverged}
    np.testing.assert_allclose(sensitivity(losses, initial=9.0), np.mean([1.0, 0.0, 0.5, 6.0]))


def test_a_rank_correlation_is_scipys_and_its_interval_covers():
    random = np.random.default_rng(3)
    x = random.normal(size=40)
    y = x + random.normal(size=40)
    result = rank_correlation(x, y)
    np.testing.assert_allclose(result.mean, scipy.stats.spearmanr(x, y).statistic)
    theirs = scipy.stats.bootstrap(
        (x, y),
        lambda a, b: scipy.stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    np.testing.assert_allclose([result.low, result.high], theirs, atol=0.03)
    assert result.n == 40 and np.isnan(rank_correlation([1.0, 2.0], [2.0, 1.0]).mean)
    assert rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]).mean == pytest.approx(1.0)


def test_the_best_rate_may_lie_between_those_that_were_tried():
    """Beside SciPy's minimum of the polynomial through the three points."""
    losses = {1e-4: 4.0, 1e-3: 3.1, 3e-3: 3.0, 1e-2: 3.2, 1e-1: 9.0}
    x, y = np.log([1e-3, 3e-3, 1e-2]), [3.1, 3.0, 3.2]
    least = scipy.optimize.minimize_scalar(scipy.interpolate.BarycentricInterpolator(x, y), bounds=(x[0], x[2]))
    rate, gain = between(losses)
    np.testing.assert_allclose([np.log(rate), gain], [least.x, 3.0 - least.fun], atol=1e-4)
    for lacking in ({1e-3: 3.0, 1e-2: 3.1}, {1e-3: 3.3, 1e-2: 3.1, 1e-1: np.inf}, {1e-3: 3.0, 1e-2: 3.1, 1e-1: 3.2}):
        assert np.isnan(between(lacking)).all()
    assert np.isnan(between({1e-3: 3.0, 1e-2: 3.0, 1e-1: 3.0})).all() and between({1: 3.1, 2: 3.0, 3: 3.0})[1] > 0
