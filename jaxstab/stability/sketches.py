"""Sketches: one number of an array, by which any change of it shows, were it a single entry's.

The sketch of a matrix W is rᵀ W c, where r and c are random signs that never change: a random projection (Alon, Matias
and Szegedy 1999). For a change Δ it moves by rᵀ Δ c, whose mean square over the signs is ‖Δ‖². The sketch of what a
step leaves is that of what the next step begins with, up to the rounding of a sum, or something else wrote in between.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxstab.numerics import layer_axes, matrix_norm, widened
from jaxstab.table import Raw, RawGradients, Row, Stored, Table, by_name, named_rows, path_of

MOMENTS = ("mu", "nu")  # optax's names of the first and second moment, of every update rule here


def sketch(row: Row, x: Float[Array, "*L *shape"]) -> Float[Array, "*L"]:
    """rᵀ x c of a matrix, or of each layer of a stack; of a vector xᵀ c, of a scalar itself. float32.

    Matrices are multiplied by vectors, axis by axis, which takes as long as reading them.
    """
    for _ in layer_axes(row, x):
        x = jnp.matmul(widened(x), _signs(x.shape[-1]), precision=jax.lax.Precision.HIGHEST)
    return x


@functools.cache
def _signs(size: int) -> np.ndarray:
    """The same random signs for every axis of one size, float32."""
    return np.random.default_rng(size).choice(np.array([-1, 1], np.float32), size)


def moments(table: Table[Stored], state: Any) -> dict[str, dict[str, Array]]:
    """The moments in an optimizer's state: {"mu": {name of the stored parameter: array}, ...}.

    They are told by where they lie: a tree of a field `mu` or `nu` that is like that of the parameters. A moment that
    isn't kept entry by entry, as of whole rows, is none of these.
    """
    rows = {row.path: (name, row) for name, row in named_rows(table).items()}
    by_kind: dict[str, dict[str, Array]] = {kind: {} for kind in MOMENTS}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(state):
        for kind in MOMENTS:
            path = f"/{path_of(key_path)}".rpartition(f"/{kind}/")[2]
            if path in rows and leaf.shape == rows[path][1].shape:
                by_kind[kind][rows[path][0]] = leaf
    return {kind: arrays for kind, arrays in by_kind.items() if arrays}


def state_statistics(
    table: Table[Stored], raw: Raw, new_raw: Raw, state: Any, clipped_raw_gradients: RawGradients
) -> dict[str, Array]:
    """What an account of a step's state needs, of every stored parameter.

    - sketch/weight and sketch/weight_after: before the step, and of what it leaves
    - sketch/mu, sketch/gradient: of the first moment before the step and of the gradient that the update rule gets, for
      mu' = b1 mu + (1 - b1) g holds of their sketches too
    - mu_norm: ‖mu‖, from whose course the cosine of g and mu follows
    - nu_mean: the mean of the second moment, which follows mean(nu') = b2 mean(nu) + (1 - b2) mean(g²)

    Args:
      table: rows of what is stored.
      raw, state: stored parameters and the optimizer's state before the step.
      new_raw: the stored parameters that the step leaves.
      clipped_raw_gradients: the gradient by `raw`, after clipping.

    Returns:
      {"stability/<measurement>/<name>": value}, float32; the name of a matrix is its role, that of any other parameter
      its path. Norms and means are `[L]` where stacked and scalar elsewhere; a sketch says nothing to a reader, and is
      `[L]` or `[1]`, so that it goes where vectors go.
    """
    rows = named_rows(table)
    of_moments = moments(table, state)
    firsts, seconds = of_moments.get("mu", {}), of_moments.get("nu", {})
    sketches = {
        "weight": by_name(sketch, table, raw),
        "weight_after": by_name(sketch, table, new_raw),
        "mu": {name: sketch(rows[name], mu) for name, mu in firsts.items()},
        "gradient": by_name(sketch, table, clipped_raw_gradients),
    }
    measured = {
        "mu_norm": {name: matrix_norm(rows[name], mu) for name, mu in firsts.items()},
        "nu_mean": {name: jnp.mean(nu, layer_axes(rows[name], nu)) for name, nu in seconds.items()},
    }
    return {f"stability/{name}/{part}": value for name, by in measured.items() for part, value in by.items()} | {
        f"stability/sketch/{of}/{part}": jnp.atleast_1d(value)
        for of, by in sketches.items()
        for part, value in by.items()
    }


def vector_statistics(table: Table[Stored], raw: Raw, raw_gradients: RawGradients, updates: Raw) -> dict[str, Array]:
    """Norms of what is stored and isn't a matrix, gains, biases and gates, of their gradients and of their updates.

    Returns:
      {"stability/<measurement>/<path>": value} of vector_norm, vector_grad_norm and vector_update_norm.
    """
    trees = {"vector_norm": raw, "vector_grad_norm": raw_gradients, "vector_update_norm": updates}
    rows = named_rows(table)
    return {
        f"stability/{measurement}/{name}": norm
        for measurement, tree in trees.items()
        for name, norm in by_name(matrix_norm, table, tree).items()
        if not rows[name].is_matrix
    }
