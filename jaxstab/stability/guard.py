"""The guard of a training step: whether the step is taken, and whether the run goes on.

A guard selects between the state before a step and after it, and never multiplies. Where the host has to answer (to
roll back, to stop), it halts: following steps change nothing until then.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxstab.stability import spikes
from jaxstab.stability.config import StabilityConfig

ASKS_HOST = ("rollback", "stop")
DEVIATIONS = {"skip_step": "deviation", "olmo2": "deviation_1000"}  # by rule, the name of what it judges by


class Guard(NamedTuple):
    """The guard's state, which is a part of the run's.

    Attributes:
      windows: statistics of the steps taken.
      spikes, nonfinite: how many of the latest steps in a row were spikes, or not finite.
      halted: whether steps change nothing until the host has answered.
    """

    windows: spikes.Windows
    spikes: Int[Array, ""]
    nonfinite: Int[Array, ""]
    halted: Bool[Array, ""]


class Verdict(NamedTuple):
    """What is decided of one step: whether it is taken, is a spike, and is finite throughout."""

    taken: Bool[Array, ""]
    spike: Bool[Array, ""]
    finite: Bool[Array, ""]


def start() -> Guard:
    """The guard of a run that has taken no step yet."""
    zero = jnp.zeros((), jnp.int32)
    return Guard(spikes.windows(), zero, zero, jnp.zeros((), bool))


def judge(config: StabilityConfig, guard: Guard, readings_Q: Float[Array, " Q"], finite: Bool[Array, ""]) -> Verdict:
    """Judges a step before its update, by its loss and gradient, so that memory need not hold both old and new state.

    Args:
      config: the rule and the responses.
      guard: before the step.
      readings_Q: the detectors' readings, as in `spikes.QUANTITIES`; NaN for what isn't known yet, the update's norm.
      finite: whether loss and gradient are.
    """
    spike = finite & _exceeds(config, guard, readings_Q)
    lasts = guard.spikes >= config.max_skips
    untaken = guard.halted
    if config.on_spike != "log":
        untaken |= spike & ~lasts if config.on_spike == "skip" else spike
    if config.on_nonfinite != "log":
        untaken |= ~finite
    return Verdict(~untaken, spike, finite)


def advance(
    config: StabilityConfig, guard: Guard, verdict: Verdict, readings_Q: Float[Array, " Q"]
) -> tuple[Guard, Verdict]:
    """The guard after a step, and the verdict with what the norm of its update adds.

    The update has been taken by then: the guard can halt the steps that follow it, but not leave it out. After an
    update that isn't finite it halts under every response but `log`.

    Args:
      config: the rule and the responses.
      guard: before the step.
      verdict: as `judge` gave it.
      readings_Q: all of them.
    """
    broken = verdict.taken & ~jnp.isfinite(readings_Q).all()
    finite = verdict.finite & ~broken
    spike = finite & (verdict.spike | verdict.taken & _exceeds(config, guard, readings_Q))

    halted = guard.halted | spike & (config.on_spike in ASKS_HOST)
    if config.on_nonfinite != "log":
        lasts = guard.nonfinite >= config.max_skips
        halted |= broken | ~finite & ((config.on_nonfinite in ASKS_HOST) | lasts)
    with_readings = spikes.push(guard.windows, readings_Q)
    enters = verdict.taken & finite
    windows = jax.tree.map(lambda new, old: jnp.where(enters, new, old), with_readings, guard.windows)
    # A skipped spike counts too. One that the host answers doesn't: the run goes on from the state before it.
    counts = jnp.where(enters | finite & ~halted, with_readings.spikes, guard.windows.spikes)
    new = Guard(
        windows._replace(spikes=counts),
        jnp.where(finite, jnp.where(spike, guard.spikes + 1, 0), guard.spikes),
        jnp.where(finite, 0, guard.nonfinite + 1),
        halted,
    )
    new = jax.tree.map(lambda new, old: jnp.where(guard.halted, old, new), new, guard)
    return new, Verdict(verdict.taken, spike, finite)


def _exceeds(config: StabilityConfig, guard: Guard, readings_Q: Float[Array, " Q"]) -> Bool[Array, ""]:
    """Whether one of the watched readings is a spike by the run's rule; NaN never is."""
    rule = spikes.RULES[config.rule]
    is_watched = jnp.array([name in config.watch for name in spikes.QUANTITIES])
    return (spikes.exceeds(spikes.deviations(guard.windows, readings_Q, rule.window), rule) & is_watched).any()


def detector_metrics(guard: Guard, readings_Q: Float[Array, " Q"], steps: ArrayLike) -> dict[str, Array]:
    """What the detectors say of a step: deviations in both windows, spike scores, and whether a spike is foretold.

    Args:
      guard: before the step.
      readings_Q: of the step.
      steps: how many steps there were before it.
    """
    by_name = {
        name: spikes.deviations(guard.windows, readings_Q, spikes.RULES[rule].window)
        for rule, name in DEVIATIONS.items()
    }
    by_name["spike_score"] = spikes.scores(guard.windows, steps)
    metrics = {f"stability/{name}/{q}": z[i] for name, z in by_name.items() for i, q in enumerate(spikes.QUANTITIES)}
    return metrics | {"stability/foretold": spikes.foretold(by_name["deviation"]).astype(jnp.float32)}
