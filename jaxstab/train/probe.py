"""The measurements that need the model: a probe batch goes through its blocks, one layer at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstab.config import build_method
from jaxstab.model.config import ModelConfig
from jaxstab.model.norms import POINTWISE
from jaxstab.model.placements import PLACEMENTS, Norms, Placement
from jaxstab.model.transformer import ATTENTION_INTERMEDIATES, MLP_INTERMEDIATES, Attention, Block, Transformer, sown
from jaxstab.numerics import mean_over_rows, rms
from jaxstab.stability import attention_bound, jacobian_norm, mlp_bound


def probe(
    model: Transformer,
    weights: Any,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"] | None = None,
    iterations: int = 30,
) -> dict[str, Array]:
    """Measures what the blocks do to a probe batch, in float32 and with the reference attention.

    - shortcut_std/{embedding,attention,mlp}: standard deviation of the shortcut's entries after the embedding, and in
      every layer after that branch (Takase et al. 2025, the s_x of their bounds)
    - attention_entropy/<head>, max_attention_logit/<head>: nats, and the largest visible logit (Zhai et al. 2023,
      Wortsman et al. 2023)
    - dead_units, max_activation: of the MLP, see `jaxstab.model.transformer.MLP`
    - max_logit: the largest output logit
    - jacobian/{attention,mlp}: ‖∂(x + f(N(x)))/∂x‖₂ of each branch with its shortcut, on the first sequence
    - jacobian_bound/{attention,mlp}: bounds (20) and (15) of Takase et al. 2025 on these, where the norm placement is
      one that they speak of (`Placement.bounded`), of norms that divide a token's scale out; (15) is of an MLP of two
      matrices, so that `swiglu` has none. See `branch_bounds`

    Args:
      model: the probe takes its config, but for the compute dtype and rematerialisation.
      weights: effective weights.
      tokens_BT: the batch. The Jacobians cost about 5 x `iterations` forward passes of one of its sequences.
      segments_BT: document numbers, where attention stays inside documents.
      iterations: of the power iterations; 30 came within 2% of the largest singular values at initialization.

    Returns:
      {"stability/<measurement>": value}: `[L]`, but for the scalars shortcut_std/embedding and max_logit.
    """
    config = dataclasses.replace(model.config, dtype="float32", remat="none", attention="xla")
    plain, block = Transformer(config), Block(config, ATTENTION_INTERMEDIATES + MLP_INTERMEDIATES)
    x_BTD, rotary_2TK = _apply(plain, weights, tokens_BT, method="embedded")
    first = None if segments_BT is None else segments_BT[:1]
    key = jax.random.key(0)
    placement: Placement = build_method(config.norm_placement, PLACEMENTS)

    def layer(x_BTD: Array, numbered: tuple[Array, Any]) -> tuple[Array, dict[str, Array]]:
        number, own = numbered

        def attend(x_BTD: Array, segments_BT: Array | None, **options: Any) -> Any:
            return _apply(block, own, x_BTD, number, rotary_2TK, segments_BT, method="attention_branch", **options)

        def feed(x_BTD: Array, read_BTD: Array | None = None, **options: Any) -> Any:
            return _apply(block, own, x_BTD, number, read_BTD, method="mlp_branch", **options)

        between_BTD, in_attention = attend(x_BTD, segments_BT, mutable=["intermediates"])
        read_BTD = x_BTD if config.parallel else between_BTD
        after_BTD, in_mlp = feed(between_BTD, read_BTD, mutable=["intermediates"])
        measurements = {
            **sown(in_attention),
            **sown(in_mlp),
            "shortcut_std/attention": _std(between_BTD),
            "shortcut_std/mlp": _std(after_BTD),
            "jacobian/attention": jacobian_norm(lambda x: attend(x, first), x_BTD[:1], key, iterations),
            "jacobian/mlp": jacobian_norm(feed, read_BTD[:1], key, iterations),
        }
        if placement.bounded and config.norm not in POINTWISE:
            measurements |= branch_bounds(
                config, placement.norms, own, x_BTD[:1], read_BTD[:1], rotary_2TK, first, key, iterations
            )
        return after_BTD, measurements

    _, measurements = jax.lax.scan(layer, x_BTD, (jnp.arange(1.0, config.layers + 1), weights["layers"]))
    for name in ATTENTION_INTERMEDIATES:
        by_head_LH = measurements.pop(name)
        measurements |= {f"{name}/{head}": by_head_LH[:, head] for head in range(config.heads)}
    measurements["shortcut_std/embedding"] = _std(x_BTD)
    measurements["max_logit"] = jnp.max(_apply(plain, weights, tokens_BT, segments_BT))
    return {f"stability/{name}": value for name, value in measurements.items()}


def branch_bounds(
    config: ModelConfig,
    norms: Norms,
    layer: Any,
    x_BTD: Float[Array, "B T D"],
    between_BTD: Float[Array, "B T D"],
    rotary_2TK: Array | None,
    segments_BT: Array | None,
    key: Array,
    iterations: int,
) -> dict[str, Array]:
    """The bounds of Takase et al. 2025 on the Jacobians of one pre-norm layer's branches, by its present weights.

    s_x is here the standard deviation of the token whose entries spread least, which has the largest Jacobian. Gains of
    norms, which the paper leaves out, count as part of the matrix or function that reads the norm. There is none for
    heads that together are wider than the model or narrower, nor for an MLP whose slope grows or has a gate.

    Args:
      config: the model's.
      norms: names of the layer's norms.
      layer: weights of the layer.
      x_BTD, between_BTD: the shortcut entering attention, and the MLP.
      rotary_2TK, segments_BT: as attention takes them.
      key, iterations: of ‖J^Z‖₂'s power iteration.
    """

    def normed(block: Block, x_BTD: Array) -> Array:
        return getattr(block, norms.before_attention)(x_BTD)

    bounds = {}
    if config.heads * config.head_dim == config.width:
        # The concatenated heads are attention under an output matrix that does nothing.
        identity = {"kernel": jnp.eye(config.width), "bias": jnp.zeros(config.width)}
        own = layer["self_attn"] | {"o_proj": identity}
        h_BTD = _apply(Block(config), layer, x_BTD, method=normed)
        gain_D = layer[norms.before_attention]["scale"]
        heads_norm = jacobian_norm(
            lambda moved_BTD: _apply(Attention(config), own, h_BTD + gain_D * moved_BTD, rotary_2TK, segments_BT),
            jnp.zeros_like(h_BTD),
            key,
            iterations,
        )
        o_std = rms(layer["self_attn"]["o_proj"]["kernel"])
        bounds["jacobian_bound/attention"] = attention_bound(o_std, _least_std(x_BTD), heads_norm, config.width)
    if config.mlp not in ("swiglu", "relu2"):  # which has no largest slope, as the bound asks for
        up_DF, down_FD = (layer["mlp"][name]["kernel"] for name in ("up_proj", "down_proj"))
        gain_D1 = layer[norms.before_mlp]["scale"][:, None]
        stds = rms(gain_D1 * up_DF), rms(down_FD), _least_std(between_BTD)
        bounds["jacobian_bound/mlp"] = mlp_bound(*stds, *up_DF.shape)
    return bounds


def _apply(module: nn.Module, weights: Any, *arguments: Any, **options: Any) -> Any:
    return module.apply({"params": weights}, *arguments, **options)


def _std(x_BTD: Array) -> Array:
    """The standard deviation of all entries."""
    deviations_BTD = x_BTD - mean_over_rows(x_BTD, axes=(1, 2))
    return jnp.sqrt(mean_over_rows(jnp.square(deviations_BTD), axes=(1, 2)))


def _least_std(x_BTD: Array) -> Array:
    return jnp.min(jnp.std(x_BTD, axis=-1))
