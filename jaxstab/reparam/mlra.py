"""Multi-head low-rank attention: query, key and value as products of two factors (Chung et al. 2024)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxstab.config import ConfigError, Range, unknown
from jaxstab.reparam.base import Method, Stored
from jaxstab.table import MATRICES, Row


def mlra(
    roles: Annotated[tuple[str, ...], "Which matrices are factorised."] = ("q_proj", "k_proj", "v_proj"),
    rank: Annotated[
        int, "Inner size r; 0 is d_in d_out / (d_in + d_out), which costs no parameters: d/2.", Range(0)
    ] = 0,
    std: Annotated[
        float, "Standard deviation s of both factors; 0 is what gives the product the backbone's.", Range(0)
    ] = 0.0,
    control: Annotated[bool, "The control: one matrix of full rank, with the product's standard deviation."] = False,
) -> Method:
    """Each matrix is a product of two factors with nothing between them. Heads are split after the product.

    Formula: W̄ = U V, U ∈ R^{d_in × r}, V ∈ R^{r × d_out}, entries N(0, s²), so that Var(W̄) = r s⁴; control: N(0, r s⁴)
    Paper: Chung et al. 2024 (TEV), by its abstract; rank, initialization and norms are this project's reading.
    Parameters: r (d_in + d_out) - d_in d_out per matrix: none at the default rank.
    Checked against: NumPy float64 (tests/reparam).
    Certainty: remembered, low.

    The effective matrix is multiplied out once per step: this trains a low-rank parameterization, and saves no compute.
    Factors are drawn, so that imported or searched weights are lost. With s = 0.02 the product is smaller than a matrix
    of std s for every rank below 2500; the control separates the effect of a product from that of its size.
    """
    for role in roles:
        if role not in MATRICES:
            raise ConfigError(unknown(f"role {role!r} in reparam.mlra.roles", role, MATRICES))

    def inner(row: Row) -> int:
        chosen = rank or max(1, row.fan_in * row.fan_out // (row.fan_in + row.fan_out))
        if chosen > min(row.fan_in, row.fan_out):
            raise ConfigError(
                f"reparam.mlra.rank={rank} is larger than {row.role}, {row.fan_in} x {row.fan_out}; "
                f"at most {min(row.fan_in, row.fan_out)}"
            )
        return chosen

    def factor_std(row: Row, product: Any) -> Any:
        return std or jax.tree.map(lambda each: (each / inner(row) ** 0.5) ** 0.5, product)

    def product_std(row: Row) -> Any:
        return math.sqrt(inner(row)) * std**2 if std else row.std

    def rows(row: Row) -> dict[str, Row]:
        if control:
            return {"weight": row.replace(std=product_std(row))}
        *stack, left, right = zip(row.shape, row.axes, strict=True)
        between = (inner(row), None)
        shapes = {"left": [*stack, left, between], "right": [*stack, between, right]}
        s = None if row.std is None and not std else factor_std(row, row.std)
        return {
            name: row.replace(shape=tuple(size for size, _ in sides), axes=tuple(axis for _, axis in sides), std=s)
            for name, sides in shapes.items()
        }

    def init(row: Row, weight: jax.Array, measured: jax.Array, key: jax.Array) -> tuple[Stored, Any]:
        if control:
            return {"weight": weight * (product_std(row) / jnp.where(measured > 0, measured, 1.0) if std else 1.0)}, ()
        left, right = jax.random.split(key)
        s, r = factor_std(row, measured), inner(row)
        left_std = jnp.where(s > 0, s, row.fan_in**-0.5)  # were both factors zero, neither would get a gradient
        return {
            "left": left_std * jax.random.normal(left, (row.fan_in, r), weight.dtype),
            "right": s * jax.random.normal(right, (r, row.fan_out), weight.dtype),
        }, ()

    def effective(row: Row, stored: Stored, state: Any) -> tuple[jax.Array, Any]:
        if control:
            return stored["weight"], state
        return jnp.matmul(stored["left"], stored["right"], precision=jax.lax.Precision.HIGHEST), state

    return Method(lambda row: row.role in roles, rows, init, effective, kind="factors", preserves=False, scales=not std)
