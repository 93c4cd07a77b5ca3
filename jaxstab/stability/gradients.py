"""Statistics of gradients over the micro-batches of one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxstab.numerics import layer_axes
from jaxstab.stability.norms import global_norm
from jaxstab.table import Side, Table, Tree, by_role


def gradient_statistics(
    table: Table[Side], gradient_of: Callable[[Any], Tree[Side]], micro_batches: Any, size: int
) -> dict[str, Array]:
    """The two quantities that are called gradient variance, and the gradient noise scale.

    - gradient_variance: (1/P) Σ_p Var_k[g_kp] over K micro-batches, unbiased (K - 1), over a matrix's P entries
    - gradient_entry_variance: the variance over the P entries of the mean gradient
    - gradient_noise_scale: B_simple = tr(Σ) / |G|² over all parameters, estimated from |g_k|² of small batches of b
      examples and |ḡ|² of the large one of B = K b (McCandlish et al. 2018, appendix A.1):
      |G|² ≈ (B |ḡ|² - b |g|²) / (B - b) and tr(Σ) ≈ (|g|² - |ḡ|²) / (1/b - 1/B). Both are unbiased, their ratio isn't:
      average many, and expect negative values where |G|² is lost in noise.

    Which of the two variances Chung et al. 2024 plot against TEV is not known.

    Args:
      table: rows of what `gradient_of` gives gradients for.
      gradient_of: micro-batch -> gradient of its mean loss. Two gradients are in memory at a time.
      micro_batches: a tree whose leaves lead with an axis of K >= 2 micro-batches.
      size: examples in a micro-batch, in whatever unit the noise scale is wanted (sequences, tokens).

    Returns:
      {"stability/<measurement>/<role>": value}, float32, `[L]` for stacked roles and scalar for the others;
      "stability/gradient_noise_scale", a scalar.
    """
    count = jax.tree.leaves(micro_batches)[0].shape[0]
    assert count > 1, "a variance needs two micro-batches"
    zero = jax.tree.map(lambda row: jnp.zeros(row.shape, jnp.float32), table)
    zero_per_layer = jax.tree.map(lambda row: jnp.zeros((row.layers,) * row.stacked, jnp.float32), table)

    # Welford 1962: with deviations from the running mean nothing cancels. Those of a matrix's entries are added up.
    def take_in(carry: Any, numbered: Any) -> tuple[Any, None]:
        mean, deviations = carry
        index, micro_batch = numbered
        gradient = gradient_of(micro_batch)
        new_mean = jax.tree.map(lambda m, g: m + (g - m) / index, mean, gradient)
        added = jax.tree.map(
            lambda row, g, m, n: jnp.sum((g - m) * (g - n), layer_axes(row, g)), table, gradient, mean, new_mean
        )
        return (new_mean, jax.tree.map(jnp.add, deviations, added)), None

    numbers = jnp.arange(1.0, count + 1)
    (mean, deviations), _ = jax.lax.scan(take_in, (zero, zero_per_layer), (numbers, micro_batches))
    trace = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(deviations)) / (count - 1)  # tr(Σ) / b
    square = jnp.square(global_norm(table, mean))
    statistics = {
        "gradient_variance": by_role(
            lambda row, deviation: deviation / (count - 1) / (row.fan_in * row.fan_out), table, deviations
        ),
        "gradient_entry_variance": by_role(lambda row, g: jnp.var(g, axis=(-2, -1)), table, mean),
    }
    named = {f"stability/{name}/{role}": value for name, by in statistics.items() for role, value in by.items()}
    # |g|² - |ḡ|² is (1 - 1/K) tr(Σ)/b, so that McCandlish et al.'s two estimates are these:
    return named | {"stability/gradient_noise_scale": size * trace / (square - trace / count)}
