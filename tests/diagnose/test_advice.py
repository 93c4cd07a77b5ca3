"""Advice is tried: a run that has the cause ends better with it, and the program takes it."""

import dataclasses

import numpy as np
import pytest

from jaxstab.diagnose import diagnosed
from jaxstab.diagnose.causes import CAUSES, Cause, advice_against
from jaxstab.diagnose.diagnosis import is_accepted, values_of
from tests.diagnose.real import real


def trained(**rates):
    """A run with other rates than the config's, which say so in its saved config."""
    run = real()

    def given(step, hypers):
        return hypers._replace(**{name: np.float32(value) for name, value in rates.items()})

    history = run.run(hypers_of=given)
    return dataclasses.replace(
        history, saved=history.saved | {f"optimizer.{name}": value for name, value in rates.items()}
    )


def ends_at(history):
    return float(np.median(history.scalar("train/loss")[1][-10:]))


@pytest.mark.parametrize(
    ("rates", "cause"), [({"learning_rate": 1.0}, "learning_rate"), ({"weight_decay": 30.0}, "weight_decay")]
)
def test_a_run_with_the_cause_ends_better_with_the_advice(rates, cause):
    bad = trained(**rates)
    diagnosis = diagnosed(bad)
    assert diagnosis.cause.cause == cause and diagnosis.advice
    for each in diagnosis.advice:
        changed = {key.removeprefix("optimizer."): value for key, value in values_of(each.keys).items()}
        assert ends_at(trained(**(rates | changed))) < ends_at(bad) - 0.1


@pytest.mark.parametrize("cause", CAUSES)
def test_the_program_takes_what_is_advised(cause):
    """Of every cause, exact or not: each line by itself, for one is taken instead of the other."""
    history = real().run(2)
    history = dataclasses.replace(history, saved=history.saved | {"train.z_loss": 0.0})
    for certainty in ("identity", "statistic"):
        advice = advice_against(history, Cause(cause, step=1, certainty=certainty))
        assert all(is_accepted(history, each.keys) for each in advice)
        assert all(set(values_of(each.keys)) <= set(history.saved) for each in advice)
