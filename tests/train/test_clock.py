"""The time of a step is its own."""

import threading

import jax
import jax.numpy as jnp
import pytest

from jaxstab.train.clock import StepClock


class Step:
    """The outputs of a step, ready when the test says so."""

    def __init__(self):
        self.done = threading.Event()

    def block_until_ready(self):
        assert self.done.wait(10)


class Time:
    """A clock that the test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def clock(time):
    with StepClock(time) as clock:
        yield clock


def ends(time, step, seconds, at):
    time.now = at
    step.done.set()
    return seconds.result(10)


def test_a_step_takes_the_time_from_the_end_of_the_one_before_it(clock, time):
    first, second = Step(), Step()
    seconds = clock.watch(first)
    time.now = 101.0
    others = clock.watch(second)  # dispatched while the first is at work
    assert ends(time, first, seconds, at=103.0) == 3
    assert ends(time, second, others, at=107.0) == 4


def test_what_the_host_does_between_two_steps_is_of_neither(clock, time):
    first, second = Step(), Step()
    assert ends(time, first, clock.watch(first), at=102.0) == 2
    time.now = 150.0  # an evaluation
    clock.restart()
    time.now = 151.0
    assert ends(time, second, clock.watch(second), at=153.0) == 3


def test_a_step_that_is_reported_late_has_ended_when_it_ended(clock, time):
    first, second = Step(), Step()
    seconds = clock.watch(first)
    assert ends(time, first, seconds, at=102.0) == 2
    others = clock.watch(second)
    assert ends(time, second, others, at=103.0) == 1
    time.now = 200.0
    assert (seconds.result(), others.result()) == (2, 1)


def test_compiling_is_no_part_of_a_step(clock, time):
    compiled, step = Step(), Step()

    @jax.jit
    def program(x):
        time.now = 140.0  # traced, and compiled after that
        return x + 1

    running = clock.watch(compiled)
    program(jnp.float32(1))
    seconds = clock.watch(step)
    assert ends(time, compiled, running, at=141.0) == 41, "the step at work takes no notice"
    assert ends(time, step, seconds, at=145.0) == 4
    other = Step()
    thread = threading.Thread(target=lambda: jax.jit(lambda x: x + 2)(jnp.float32(1)))
    time.now = 150.0
    thread.start()
    thread.join()
    assert ends(time, other, clock.watch(other), at=151.0) == 6, "nor does any of another thread's compiling"
