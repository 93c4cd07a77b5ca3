"""The guard of a training step: whether the step is taken, and whether the run goes on.

A guard selects between the state before a step and after it, and never multiplies. Where the host has to answer (to
roll back, to stop), it halts: following steps change nothing until then.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstab.stability import spikes
from jaxstab.stability.config import StabilityConfig

ASKS_HOST = ("rollback", "stop")
DEVIATIONS = {"skip_step": "deviation", "olmo2": "deviation_1000"}  # by rule, the name of what it judges by


class Guard(NamedTuple):
    """The guard's state; a part of the run's.

    Attributes:
      windows: statistics of the steps taken.
      spikes, nonfinite: such steps in a row, up to the last one.
      halted: whether steps change nothing until the host has answered.
    """

    windows: spikes.Windows
    spikes: Int[Array, ""]
    nonfinite: Int[Array, ""]
    halted: Bool[Array, ""]


class Verdict(NamedTuple):
    """Of one step: whether it is taken, whether it is a spike, whether everything in it is finite."""

    taken: Bool[Array, ""]
    spike: Bool[Array, ""]
    finite: Bool[Array, ""]


def start() -> Guard:
    """A guard that has seen nothing."""
    zero = jnp.zeros((), jnp.int32)
    return Guard(spikes.windows(), zero, zero, jnp.zeros((), bool))


def judge(
    config: StabilityConfig, guard: Guard, seen_Q: Float[Array, " Q"], finite: Bool[Array, ""]
) -> tuple[Guard, Verdict]:
    """Judges a step.

    Args:
      config: the rule and the responses.
      guard: before the step.
      seen_Q: the step's loss, gradient norm and update norm, as in `spikes.QUANTITIES`.
      finite: whether these, and all that they stand for, are.

    Returns:
      The guard after the step, and the verdict.
    """
    rule = spikes.RULES[config.rule]
    is_watched = jnp.array([name in config.watch for name in spikes.QUANTITIES])
    z_Q = spikes.deviations(guard.windows, seen_Q, rule.window)
    spike = finite & (spikes.exceeds(z_Q, rule) & is_watched).any()
    lasting = {"spike": guard.spikes >= config.max_skips, "nonfinite": guard.nonfinite >= config.max_skips}

    untaken, halted = guard.halted, guard.halted
    if config.on_spike != "log":
        untaken |= spike & ~lasting["spike"] if config.on_spike == "skip" else spike
    if config.on_nonfinite != "log":
        untaken |= ~finite
    halted |= spike & (config.on_spike in ASKS_HOST)
    halted |= ~finite & ((config.on_nonfinite in ASKS_HOST) | ((config.on_nonfinite == "skip") & lasting["nonfinite"]))

    taken_in = spikes.taken_in(guard.windows, seen_Q)
    new = Guard(
        jax.tree.map(lambda new, old: jnp.where(~untaken & finite, new, old), taken_in, guard.windows),
        jnp.where(finite, jnp.where(spike, guard.spikes + 1, 0), guard.spikes),
        jnp.where(finite, 0, guard.nonfinite + 1),
        halted,
    )
    new = jax.tree.map(lambda new, old: jnp.where(guard.halted, old, new), new, guard)
    return new, Verdict(~untaken, spike, finite)


def told(guard: Guard, seen_Q: Float[Array, " Q"]) -> dict[str, Array]:
    """What the detectors say of a step, given the guard before it: deviations in both windows, and spike scores."""
    found = {
        name: spikes.deviations(guard.windows, seen_Q, spikes.RULES[rule].window) for rule, name in DEVIATIONS.items()
    }
    found["spike_score"] = spikes.scores(guard.windows)
    return {f"stability/{name}/{q}": z[i] for name, z in found.items() for i, q in enumerate(spikes.QUANTITIES)}
