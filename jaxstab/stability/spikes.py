"""Spikes by their distance from a running mean: the same code in the training step and over a file of metrics."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

QUANTITIES = ("loss", "grad_norm", "update_norm")
LENGTH = 1000  # of the longest window
LEAST = 64  # values before which nothing is a spike
CLIP = 7.0  # standard deviations
FORETELLS = 2.0  # standard deviations


class Rule(NamedTuple):
    """A spike is a value more than `threshold` standard deviations from the mean of the `window` values before it.

    Attributes:
      window: how many of the newest values count, at most LENGTH.
      threshold: in standard deviations.
      falls: whether a value far below the mean is a spike too.
    """

    window: int
    threshold: float
    falls: bool = False


RULES = {
    "skip_step": Rule(128, 6.0),  # OLMo-core's SkipStepOptimizer
    "olmo2": Rule(LENGTH, 7.0, falls=True),  # OLMo 2 (arXiv:2501.00656), section 3; the SD is that of the window
}


class Windows(NamedTuple):
    """The newest values of each quantity, float32, in a ring.

    A value more than CLIP standard deviations off enters at CLIP: the published rules take it in whole, and it then
    hides the next spike as long as it is in the window. A level that lasts is still followed, in some tens of steps.

    Attributes:
      values: `[Q, LENGTH]`.
      taken: how many values each has taken in.
      spikes: how many values were spikes by the rule `olmo2`, `[Q]`, among them those of steps that were skipped.
    """

    values: Float[Array, "Q W"]
    taken: Int[Array, ""]
    spikes: Int[Array, " Q"]


def windows(quantities: int = len(QUANTITIES)) -> Windows:
    """Windows that have taken in nothing."""
    return Windows(jnp.zeros((quantities, LENGTH)), jnp.zeros((), jnp.int32), jnp.zeros((quantities,), jnp.int32))


def moments(state: Windows, window: int) -> tuple[Float[Array, " Q"], Float[Array, " Q"]]:
    """Mean and standard deviation of the newest `window` values; an SD below 1e-6 of the mean, float32's resolution,
    counts as that."""
    age_W = (state.taken - 1 - jnp.arange(LENGTH)) % LENGTH
    counts_W = age_W < jnp.minimum(state.taken, window)
    mean_Q = jnp.mean(state.values, axis=1, where=counts_W)
    deviation_Q = jnp.sqrt(jnp.mean(jnp.square(state.values - mean_Q[:, None]), axis=1, where=counts_W))
    return mean_Q, jnp.maximum(deviation_Q, 1e-6 * jnp.abs(mean_Q) + 1e-30)


def deviations(state: Windows, new_Q: Float[Array, " Q"], window: int) -> Float[Array, " Q"]:
    """(x - mean) / SD over the newest `window` values, `new_Q` not among them; 0 before LEAST values or where x isn't
    finite."""
    mean_Q, deviation_Q = moments(state, window)
    return jnp.where((state.taken >= LEAST) & jnp.isfinite(new_Q), (new_Q - mean_Q) / deviation_Q, 0.0)


def exceeds(z: ArrayLike, rule: Rule) -> Bool[Array, "*n"]:
    """Whether deviations `[*n]` are spikes by `rule`."""
    return (jnp.abs(z) if rule.falls else jnp.asarray(z)) > rule.threshold


def foretold(z_Q: Float[Array, " Q"]) -> Bool[Array, ""]:
    """Whether a spike is foretold: the norms of gradient and update both lie more than FORETELLS above their mean.

    A batch of odd text raises the gradient's norm and hardly the update's, a mean over steps; a warmup raises the
    update's alone. docs/results/foretell.md has the race that this rule comes from.

    Args:
      z_Q: deviations over the window of `skip_step`, as in QUANTITIES.
    """
    of_norms = z_Q[QUANTITIES.index("grad_norm") :]
    return (of_norms > FORETELLS).all()


def push(state: Windows, new_Q: Float[Array, " Q"]) -> Windows:
    """The windows with one more value each, which has to be finite."""
    spikes = exceeds(deviations(state, new_Q, RULES["olmo2"].window), RULES["olmo2"])
    mean_Q, deviation_Q = moments(state, RULES["skip_step"].window)
    near_Q = jnp.clip(new_Q, mean_Q - CLIP * deviation_Q, mean_Q + CLIP * deviation_Q)
    new_Q = jnp.where(state.taken >= LEAST, near_Q, new_Q)
    values = jax.lax.dynamic_update_index_in_dim(state.values, new_Q, state.taken % LENGTH, axis=1)
    return Windows(values, state.taken + 1, state.spikes + spikes)


def scores(state: Windows, steps: ArrayLike) -> Float[Array, " Q"]:
    """OLMo 2's spike score: the percentage of a run's steps that were spikes by the rule `olmo2`, skipped ones too."""
    return 100.0 * state.spikes / jnp.maximum(steps, 1)


@jax.jit
def _scan(values_n: Array) -> dict[str, Array]:
    def body(state: Windows, value: Array) -> tuple[Windows, dict[str, Array]]:
        by_rule = {name: deviations(state, value[None], rule.window)[0] for name, rule in RULES.items()}
        taken = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(value), new, old), push(state, value[None]), state)
        return taken, by_rule

    return jax.lax.scan(body, windows(1), values_n)[1]


def deviations_over(values: ArrayLike) -> dict[str, np.ndarray]:
    """The deviations that the training step would have measured for each value of a series.

    Args:
      values: `[n]`, in the order of steps; what isn't finite has the deviation 0 and doesn't enter the windows.

    Returns:
      {rule: deviations, float32[n]}.
    """
    return {name: np.asarray(z) for name, z in _scan(jnp.asarray(values, jnp.float32)).items()}
