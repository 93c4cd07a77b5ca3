"""Learning-rate schedules against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.config import ConfigError
from jaxstab.optimize import OptimizerConfig, build
from jaxstab.optimize.schedules import constant, cosine, linear, warmup_stable_decay, with_warmup

WARMUP, STEPS = 10, 110


def held_then_linear(fraction, decay, floor):
    done = max(0.0, (fraction - (1 - decay)) / decay)
    return 1 - (1 - floor) * done


SHAPES = {
    "cosine": (cosine(), lambda x: 0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2),
    "cosine to zero": (cosine(floor=0.0), lambda x: (1 + math.cos(math.pi * x)) / 2),
    "linear": (linear(), lambda x: 1 - x),
    "linear to a floor": (linear(floor=0.25), lambda x: 1 - 0.75 * x),
    "constant": (constant(), lambda x: 1.0),
    "warmup stable decay": (warmup_stable_decay(), lambda x: held_then_linear(x, 0.2, 0.0)),
    "half to a floor": (warmup_stable_decay(decay=0.5, floor=0.1), lambda x: held_then_linear(x, 0.5, 0.1)),
}


@pytest.mark.parametrize(("shape", "formula"), SHAPES.values(), ids=SHAPES)
def test_a_schedule_is_linear_warmup_and_then_its_formula(shape, formula):
    schedule = jax.jit(jax.vmap(with_warmup(shape, WARMUP, STEPS)))
    counts = np.arange(STEPS + 1)
    expected = [
        (count + 1) / WARMUP if count < WARMUP else formula((count - WARMUP) / (STEPS - WARMUP)) for count in counts
    ]
    found = schedule(counts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found[0] == pytest.approx(0.1) and found[WARMUP - 1] == found[WARMUP] == found.max() == 1


@pytest.mark.parametrize("shape", [shape for shape, _ in SHAPES.values()], ids=SHAPES)
def test_after_the_last_step_the_last_value_holds(shape):
    schedule = with_warmup(shape, WARMUP, STEPS)
    assert float(schedule(jnp.int32(2 * STEPS))) == pytest.approx(float(schedule(jnp.int32(STEPS))), abs=1e-6)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 5), (5, 5), (1, 1)])
def test_short_runs_have_finite_rates(warmup, steps):
    for shape, _ in SHAPES.values():
        rates = [float(with_warmup(shape, warmup, steps)(jnp.int32(count))) for count in range(steps)]
        assert all(0 < rate <= 1 for rate in rates), rates


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer\.warmup=100 is longer than the run, train\.steps=50"):
        build(OptimizerConfig(), {}, 50)
