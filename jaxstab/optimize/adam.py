"""Adam, and Adam with update clipping."""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from jaxstab.config import Range
from jaxstab.numerics import layer_axes, rms
from jaxstab.optimize.layers import TransformationFactory
from jaxstab.table import Table

B1 = Annotated[float, "Decay rate of the first moment.", Range(0, below=1)]
B2 = Annotated[float, "Decay rate of the second moment.", Range(0, below=1)]
Eps = Annotated[float, "Added to the root of the second moment; no paper here states it, 1e-8 is PyTorch's.", Range(0)]


def adamw(b1: B1 = 0.9, b2: B2 = 0.95, eps: Eps = 1e-8) -> TransformationFactory:
    """Adam; decoupled weight decay (Loshchilov and Hutter 2019) follows it, as it follows every rule.

    Formula: u = m̂ / (√v̂ + eps), where m̂ and v̂ are the bias-corrected moving averages of g and g²
    Paper: Kingma and Ba 2015 (arXiv:1412.6980), Algorithm 1
    Parameters: none; two values of state for each stored parameter
    Checked against: torch.optim.AdamW
    Certainty: primary; optax's scale_by_adam is what runs
    """
    return lambda _: optax.scale_by_adam(b1, b2, eps)


def stable_adamw(b1: B1 = 0.9, b2: B2 = 0.95, eps: Eps = 1e-8) -> TransformationFactory:
    """AdamW with Adafactor's update clipping: where a gradient is far above its second moment, the step is smaller.

    The RMS is taken over one matrix, in a stack too. Weight decay keeps the rate that isn't clipped, as in the authors'
    code. It takes the place of gradient clipping, so that `clip.method=none` goes with it.

    Formula: u = u_AdamW / max(1, RMS(g / √max(v̂, eps²))), one RMS per matrix
    Paper: Wortsman et al. 2023 (arXiv:2304.13013)
    Parameters: none; two values of state for each stored parameter
    Checked against: weights that the authors' StableAdamWUnfused gives, and NumPy in float64
    Certainty: primary (the authors' code, whose v is bias-corrected and whose decay isn't clipped)
    """

    def bind(table: Table) -> optax.GradientTransformation:
        adam = optax.scale_by_adam(b1, b2, eps)

        def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            updates, state = adam.update(gradients, state, params)
            v_hat = optax.tree.bias_correction(state.nu, b2, state.count)

            def leaf(row: Any, u: jax.Array, g: jax.Array, v: jax.Array) -> jax.Array:
                ratio = g / jnp.sqrt(jnp.maximum(v, eps**2))
                return u / jnp.maximum(1, rms(ratio, layer_axes(row, ratio), keepdims=True))

            return jax.tree.map(leaf, table, updates, gradients, v_hat), state

        return optax.GradientTransformation(adam.init, update)

    return bind


def cautious_adamw(b1: B1 = 0.9, b2: B2 = 0.95, eps: Eps = 1e-8) -> TransformationFactory:
    """AdamW without the entries that go against the newest gradient; those that are left grow to make up for it.

    Formula: u := u m / max(mean(m), 1e-3), m = 1[u g > 0], one mean per matrix
    Paper: Liang et al. 2024 (arXiv:2411.16085), Algorithm 1
    Parameters: none; two values of state for each stored parameter
    Checked against: NumPy in float64
    Certainty: primary (the authors' code, whose mean is at least 1e-3)
    """

    def bind(table: Table) -> optax.GradientTransformation:
        adam = optax.scale_by_adam(b1, b2, eps)

        def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            updates, state = adam.update(gradients, state, params)

            def leaf(row: Any, u: jax.Array, g: jax.Array) -> jax.Array:
                agrees = (u * g > 0).astype(u.dtype)
                share = jnp.mean(agrees, layer_axes(row, agrees), keepdims=True)
                return u * agrees / jnp.maximum(share, 1e-3)

            return jax.tree.map(leaf, table, updates, gradients), state

        return optax.GradientTransformation(adam.init, update)

    return bind


def batch_adamw(
    batch_ratio: Annotated[float, "Tokens in a batch over those that b2 and eps were tuned for.", Range(above=0)] = 1.0,
    b1: B1 = 0.9,
    b2: Annotated[float, "Decay rate of the second moment at the batch it was tuned for.", Range(0, below=1)] = 0.999,
    eps: Eps = 1e-8,
) -> TransformationFactory:
    """AdamW whose second moment remembers as many tokens, whatever the batch, and whose eps follows the noise.

    Formula: β₂ = clip(b2^(B/B₀), 0.95, 0.9999), ε = eps √(B₀/B)
    Paper: marin-community/marin, its grug recipe, 2026
    Parameters: none; two values of state for each stored parameter
    Checked against: `adamw` with these β₂ and ε
    Certainty: secondary; no paper has both
    """
    decay = min(max(b2**batch_ratio, 0.95), 0.9999)
    return adamw(b1, decay, eps / batch_ratio**0.5)
