"""Weight normalization (Salimans and Kingma 2016), and its data-dependent initialization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxstab.config import Range
from jaxstab.numerics import widened
from jaxstab.reparam.base import Method, Reparameterization, State, Stored, directed
from jaxstab.table import EMBEDDINGS, Raw, Row, Weights, path_of

TINY = 1e-12  # added to a squared norm: a unit whose stored weights have become zero keeps a finite gradient


class Moments(NamedTuple):
    """Mean and variance of what each output unit of a matrix puts out, `[out]`, or `[L, out]` for a stack; float32."""

    mean: jax.Array
    variance: jax.Array


def weight_norm(
    sigma: Annotated[
        float, "Standard deviation of every stored matrix; Nishida et al.'s best is sqrt(16e-5).", Range(above=0)
    ] = math.sqrt(16e-5),
    embedding: Annotated[
        str, "What has a norm in an embedding: each token's row, or each feature's column.", ("token", "feature")
    ] = "token",
    gate: Annotated[
        str,
        "Initial gates: `norm` keeps the backbone's weights, `constant` is the option of that name, `data` is 1/std of "
        "what the unit puts out on the first batch, measured before the first step.",
        ("norm", "constant", "data"),
    ] = "norm",
    constant: Annotated[float, "Initial gate where gate=constant.", Range(above=0)] = 1.0,
) -> Method:
    """One norm for each output unit, trained apart from its direction; the gradient goes through the normalization.

    Formula: w̄ = g w / ‖w‖ for every output unit's w ∈ R^{d_in}; g = ‖w̄‖, a constant, or 1/std(t) at initialization
    Paper: Salimans and Kingma 2016, equation 2 and section 3; Nishida et al. 2024, appendix C.1.
    Parameters: 1 per output unit (token or feature of an embedding); 506,368 on the 1.3B model, 1,339.6M in all.
    Checked against: PyTorch's weight_norm (tests/parity), Flax's WeightNorm and NumPy float64 (tests/reparam).
    Certainty: primary; which "row" Nishida et al. mean in an embedding is open, and so are their initial gates.

    Every reading of "row" gives the 1,339.6M parameters of Nishida et al.'s Table 6: the blocks alone have 442,368
    output units (and as many input units), lm_head has 32,000, and an embedding 32,000 tokens or 2,048 features. All
    matrices are normalized here, as their Table 4 says.

    A stored matrix's scale changes nothing but its own effective learning rate, and so does its weight decay. A unit of
    zeros has no direction: it gets a random one, and stays zero by its gate, from which it can grow.
    """

    def summed(row: Row) -> int:
        return -1 if row.role in EMBEDDINGS and embedding == "token" else -2

    def rows(row: Row) -> dict[str, Row]:
        value = {"norm": None, "constant": constant, "data": 1.0}[gate]
        other = -3 - summed(row)  # of the last two axes, the one that isn't summed over
        return {"weight": row.replace(std=sigma), "gate": row.gate(value, other)}

    def init(row: Row, weight: jax.Array, std: jax.Array, key: jax.Array) -> tuple[Stored, Any]:
        norms = jnp.linalg.norm(weight, axis=summed(row))
        gates = {"norm": norms, "constant": jnp.full_like(norms, constant), "data": jnp.ones_like(norms)}[gate]
        scaled = weight * (sigma / jnp.where(std > 0, std, 1.0))
        return {"weight": directed(scaled, sigma, key, summed(row)), "gate": gates}, ()

    def effective(row: Row, stored: Stored, state: Any) -> tuple[jax.Array, Any]:
        weight, axis = stored["weight"], summed(row)
        squares = jnp.sum(jnp.square(weight), axis, keepdims=True)
        return jnp.expand_dims(stored["gate"], axis) * jax.lax.rsqrt(squares + TINY) * weight, state

    prepare = calibrate if gate == "data" else None
    preserves = gate == "norm"
    return Method(
        lambda row: row.is_matrix,
        rows,
        init,
        effective,
        preserves=preserves,
        scales=preserves,
        linear=False,
        prepare=prepare,
    )


def calibrate(
    reparam: Reparameterization, raw: Raw, state: State, moments: Callable[[Weights], dict[str, Moments]]
) -> Raw:
    """Data-dependent initialization: g ← g / std(t), b ← (b - mean(t)) / std(t), t being what each unit puts out.

    A forward pass settles the gates whose inputs no longer change: those of one depth of the network after another. It
    takes as many passes as matrices lie one behind the other: 4 per block, and the embedding and lm_head.

    Args:
      reparam: a chain whose gates are weight_norm's.
      moments: effective weights -> moments of what every matrix puts out on a batch, by its path; see `linen_moments`.
        Gates whose matrix isn't there, and those of an embedding's tokens, stay as they are.
    """

    def rescaled(row: Row, stored: jax.Array, moments_of: dict[str, Moments]) -> jax.Array:
        module, _, name = row.path.removesuffix("/gate").rpartition("/")
        unit = moments_of.get(f"{module}/kernel" if name == "bias" else f"{module}/{name}")
        if unit is None or row.role not in ("gate", "bias") or unit.mean.shape != stored.shape:
            return stored
        # A unit that puts out one value alone has no scale to normalise.
        std = jnp.where(unit.variance > 0, jnp.sqrt(unit.variance), 1.0)
        return stored / std if row.role == "gate" else (stored - unit.mean) / std

    @jax.jit
    def once(raw: Raw) -> Raw:
        moments_of = moments(reparam.effective(raw, state)[0])
        return jax.tree.map(lambda row, stored: rescaled(row, stored, moments_of), reparam.table, raw)

    for _ in range(4 * max(row.depth for row in jax.tree.leaves(reparam.table)) + 2):
        raw = once(raw)
    return raw


def linen_moments(model: nn.Module, weights: Weights, *inputs: Any) -> dict[str, Moments]:
    """Moments of what every module with a kernel or an embedding puts out on a batch, by the path of its matrix.

    They are taken module by module, so that no more is in memory than in a forward pass. Modules under `nn.scan` need
    "intermediates" among their variable_axes.
    """

    def sow_moments(method: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
        output, module = method(*arguments, **options), context.module
        name = next((name for name in ("kernel", "embedding") if module.has_variable("params", name)), None)
        if name and context.method_name == "__call__":
            t = widened(output)
            axes = tuple(range(t.ndim - 1))
            module.sow("intermediates", name, Moments(jnp.mean(t, axes), jnp.var(t, axes)))
        return output

    with nn.intercept_methods(sow_moments):
        _, variables = model.apply({"params": weights}, *inputs, mutable=["intermediates"])
    leaves = jax.tree_util.tree_leaves_with_path(variables["intermediates"], is_leaf=lambda x: isinstance(x, Moments))
    return {path_of(path).removesuffix("/0"): unit for path, unit in leaves}
