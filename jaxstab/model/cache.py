"""A cache of keys and values, so that a token that is generated costs a pass over itself alone.

    hidden_BTD, cache = prefill(model, weights, prompts_BP, size)
    hidden_BD, cache = decode(model, weights, cache, tokens_B, positions_B)

The cache is a tree of two arrays, keys and values, with a place for each of `size` tokens of every row. Rows may stand
at different positions: a token sees the keys of its own row up to itself. What padding leaves behind a short prompt
is never seen, since every place is written before the first token that sees it is there.

Shapes: B batch, T new tokens, S places, G key-value heads, K head size, L layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

if TYPE_CHECKING:
    from jaxstab.model.transformer import Transformer

# {"layers": {"self_attn": {"keys": [L, B, S, G, K], "values": [L, B, S, G, K]}}}, in the compute dtype
Cache = dict[str, Any]
CACHE_INTERMEDIATES = ("keys", "values")  # [B, T, G, K] each, as they are after the rotation


class Window(NamedTuple):
    """Where new tokens stand among those of a cache.

    Attributes:
      positions_BT: their places, int32.
      visible_BTS: the places that each of them sees, as attention broadcasts it over heads.
    """

    positions_BT: Int[Array, "B T"]
    visible_BTS: Bool[Array, "B 1 T S"]


def extended(module: Any, name: str, x_BTGK: Float[Array, "B T G K"], window: Window) -> Float[Array, "B S G K"]:
    """Writes keys or values of new tokens to their places in a module's collection "cache", and reads them all."""
    rows_B1 = jnp.arange(x_BTGK.shape[0])[:, None]
    x_BSGK = module.get_variable("cache", name).at[rows_B1, window.positions_BT].set(x_BTGK)
    module.put_variable("cache", name, x_BSGK)
    return x_BSGK


def prefill(
    model: Transformer,
    weights: Any,
    tokens_BT: Int[Array, "B T"],
    size: int,
    segments_BT: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Reads prompts with the model's own attention.

    Args:
      model: any; its `intermediates` play no part.
      weights: effective weights.
      tokens_BT: prompts from their beginning; short ones are padded at their end, by anything.
      size: places of the cache, at least T.
      segments_BT: document numbers, where attention stays inside documents.

    Returns:
      The final hidden states, and the cache.
    """
    hidden_BTD, variables = model.clone(intermediates=CACHE_INTERMEDIATES).apply(
        {"params": weights}, tokens_BT, segments_BT, method="hidden", mutable=["intermediates"]
    )
    room = ((0, 0), (0, 0), (0, size - tokens_BT.shape[1]), (0, 0), (0, 0))
    return hidden_BTD, jax.tree.map(lambda x_LBTGK: jnp.pad(x_LBTGK, room), _unwrapped(variables["intermediates"]))


def _unwrapped(intermediates: Any) -> Cache:
    """What was sown, without the tuples that Flax keeps it in."""
    return jax.tree.map(lambda sown: sown[0], intermediates, is_leaf=lambda node: isinstance(node, tuple))


def decode(
    model: Transformer,
    weights: Any,
    cache: Cache,
    tokens_B: Int[Array, " B"],
    positions_B: Int[Array, " B"],
    segments_BS: Int[Array, "B S"] | None = None,
) -> tuple[Float[Array, "B D"], Cache]:
    """Adds one token to every row.

    Args:
      model: that of `prefill`.
      weights: effective weights.
      cache: with the keys and values of all places before `positions_B`.
      tokens_B: the tokens.
      positions_B: their places, below the cache's size and the model's `max_length`.
      segments_BS: document numbers of all places up to these, where attention stays inside documents.

    Returns:
      The final hidden states of the tokens, and the cache with them.
    """
    places_S = jnp.arange(jax.tree.leaves(cache)[0].shape[2])
    visible_BS = places_S <= positions_B[:, None]
    if segments_BS is not None:
        visible_BS &= segments_BS == jnp.take_along_axis(segments_BS, positions_B[:, None], axis=1)
    window = Window(positions_B[:, None], visible_BS[:, None, None])
    hidden_BTD, variables = model.clone(intermediates=()).apply(
        {"params": weights, "cache": cache}, tokens_B[:, None], None, window, method="hidden", mutable=["cache"]
    )
    return hidden_BTD[:, 0], variables["cache"]
