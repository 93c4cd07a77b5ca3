"""The shared mathematics against SciPy, and the same in NumPy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxstab.numerics import ZClipStatistics, robust_spread, zclip_step

ZCLIP = dict(threshold=2.5, decay=0.97, warmup=25)


def test_robust_spread_is_scipy_s():
    values = np.random.default_rng(0).standard_normal((3, 101))
    deviations = values - np.median(values, axis=1, keepdims=True)
    wanted = stats.median_abs_deviation(values, axis=1, scale="normal")
    np.testing.assert_allclose(robust_spread(deviations), wanted, rtol=1e-4)  # 1.4826 has five digits
    deviations[0, :40] = np.nan
    assert np.isfinite(robust_spread(deviations)).all()


def test_zclip_is_the_same_in_numpy_and_jax():
    dice = np.random.default_rng(0)
    norms = np.exp(0.3 * dice.standard_normal(200))
    norms[[30, 31, 90]] *= 20

    def over(xp, norms, step):
        statistics, outliers, brought = ZClipStatistics(xp.asarray(0), xp.asarray(0.0), xp.asarray(0.0)), [], []
        for norm in norms:
            is_outlier, limit, statistics = step(statistics, norm)
            outliers.append(bool(is_outlier))
            brought.append(float(limit))
        return np.flatnonzero(outliers).tolist(), np.array(brought)

    jitted = jax.jit(lambda statistics, norm: zclip_step(statistics, norm, **ZCLIP))
    in_jax = over(jnp, norms.astype(np.float32), jitted)
    in_numpy = over(np, norms, lambda statistics, norm: zclip_step(statistics, norm, **ZCLIP, xp=np))
    assert in_jax[0] == in_numpy[0] and set(in_jax[0]) >= {30, 90}
    np.testing.assert_allclose(in_jax[1], in_numpy[1], rtol=1e-4)
    assert (in_numpy[1] < norms)[in_numpy[0]].all()


def test_zclip_begins_with_the_plain_mean_and_variance():
    norms = np.random.default_rng(1).uniform(1, 2, 25)
    statistics = ZClipStatistics(0, 0.0, 0.0)
    for norm in norms:
        is_outlier, _, statistics = zclip_step(statistics, norm, **ZCLIP, xp=np)
        assert not is_outlier
    np.testing.assert_allclose((statistics.mean, statistics.variance), (norms.mean(), norms.var()), rtol=1e-12)
