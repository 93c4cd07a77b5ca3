"""A healthy run raises no alarm, whatever its method; `python -m tests.diagnose.healthy 60` takes every one of them."""

import itertools

import pytest

from tests.diagnose.healthy import CHOICES, alarms, combinations


@pytest.mark.slow
@pytest.mark.parametrize("which", range(2))
def test_a_healthy_run_raises_no_alarm(which):
    told = (alarms(changes) for changes in itertools.islice(combinations(which), 20))
    assert next(each for each in told if each is not None) == []


def test_every_method_has_its_turn():
    drawn = list(itertools.islice(combinations(0), max(map(len, CHOICES.values()))))
    assert all({changes[key] for changes in drawn} == set(registry) for key, registry in CHOICES.items())
