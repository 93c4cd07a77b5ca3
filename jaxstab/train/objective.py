"""The loss of a batch and its gradient, one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstab import scale
from jaxstab.data import segment_ids
from jaxstab.model.loss import LossSums, chunked_loss
from jaxstab.model.transformer import sown
from jaxstab.reparam import Moments, linen_moments
from jaxstab.table import Gradients, Weights
from jaxstab.train.setup import Setup

Carry = TypeVar("Carry")
ForwardMaxima = dict[str, Array]  # {"max_attention_logit": [L, H]} over a batch; empty where nothing asks for it


def segments(setup: Setup, tokens_BT: Int[Array, "B T"]) -> Int[Array, "B T"] | None:
    """Document numbers; None where attention crosses documents."""
    if not setup.config.model.mask_documents:
        return None
    assert setup.end is not None, "masking documents needs the tokenizer's end-of-document id"
    return segment_ids(tokens_BT, setup.end)


def loss_sums(
    setup: Setup, weights: Weights, tokens_BS: Int[Array, "B T+1"], valid_B: Bool[Array, " B"] | None = None
) -> tuple[Float[Array, ""], tuple[LossSums, ForwardMaxima]]:
    """The loss of a batch summed over its targets, the sums that it consists of, and maxima of the forward pass.

    Rows that aren't `valid_B` are padding and don't count.
    """
    config = setup.config
    inputs_BT, targets_BT = tokens_BS[:, :-1], tokens_BS[:, 1:]
    mask_BT = jnp.broadcast_to(True if valid_B is None else valid_B[:, None], targets_BT.shape)
    hidden_BTD, variables = setup.model.apply(
        {"params": weights}, inputs_BT, segments(setup, inputs_BT), method="hidden", mutable=["intermediates"]
    )
    loss, sums = chunked_loss(
        hidden_BTD,
        weights["lm_head"]["kernel"],
        targets_BT,
        mask_BT,
        z_loss=config.train.z_loss,
        chunk=config.train.loss_chunk,
        softcap=config.model.logits_softcap,
        groups=(setup.mesh.shape["fsdp"], setup.mesh.shape["sequence"]),
    )
    return loss, (sums, sown(variables))


def scan_micro_batches(body: Callable[[Carry, Any], Carry], carry: Carry, batch: Any, count: int) -> Carry:
    """Carries `body(carry, micro_batch)` over a batch in `count` micro-batches, of which one is in memory at a time.

    Every pass over a batch goes this way: the step, evaluation, the full measurements and `prepare`.

    Args:
      body: takes the carry and a micro-batch.
      carry: to begin with.
      batch: a tree of arrays that lead with the rows `[B, ...]`.
      count: divides B.
    """
    if count == 1:
        return body(carry, batch)
    return jax.lax.scan(lambda carry, part: (body(carry, part), None), carry, micro_batches(batch, count))[0]


def micro_batches(batch: Any, count: int) -> Any:
    """The micro-batches of a batch, `[B, ...]` to `[count, B/count, ...]` in every array of a tree.

    Micro-batch a takes the rows a, a + count, ...: those of every device, so that none is moved.
    """
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def least_count(rows: int, most: int) -> int:
    """The least number of equal micro-batches of at most `most` rows that make up `rows`."""
    return next(count for count in range(1, rows + 1) if rows % count == 0 and rows // count <= most)


def _zeros_of(function: Callable[[Any], Any], batch: Any) -> Any:
    """Zeros in the shapes and dtypes of what a function of a batch returns."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, batch))


def mean_gradients(
    setup: Setup, weights: Weights, tokens_BS: Int[Array, "B T+1"], count: int
) -> tuple[Gradients, LossSums, ForwardMaxima]:
    """The gradient of the mean loss by the effective weights, in float32, the sums behind it, and forward maxima.

    Sums over `count` micro-batches are divided once by the number of targets, so that it is the large batch's gradient.
    Each of the mesh's replicas has sums of its own, which are added up at the end: no gradient travels before that.
    """
    rows, replicas = len(tokens_BS) // count, setup.mesh.shape["replica"]
    if rows % replicas:  # as parts of a batch may be, whose gradients are compared
        replicas = 1

    def gradient_sums(tokens: Array) -> Any:
        gradients, (sums, maxima) = jax.grad(loss_sums, argnums=1, has_aux=True)(setup, weights, tokens)
        return jax.tree.map(jax.lax.with_sharding_constraint, gradients, setup.weight_shardings), sums, maxima

    def add(total: Any, tokens: Array) -> Any:
        gradients, sums, maxima = _of_replicas(gradient_sums, replicas)(tokens)
        added = jax.tree.map(jnp.add, total[:2], (gradients, sums))
        return (*added, jax.tree.map(jnp.maximum, total[2], maxima))

    *zero, maxima = _zeros_of(_of_replicas(gradient_sums, replicas), tokens_BS[:rows])
    lowest = jax.tree.map(lambda x: jnp.full_like(x, -jnp.inf), maxima)
    gradients, sums, maxima = scan_micro_batches(add, (*zero, lowest), tokens_BS, count)
    if replicas > 1:
        gradients, sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), (gradients, sums))
        maxima = jax.tree.map(lambda x: jnp.max(x, axis=0), maxima)
    gradients = jax.tree.map(jax.lax.with_sharding_constraint, gradients, setup.weight_shardings)
    return jax.tree.map(lambda gradient: gradient / sums.targets, gradients), sums, maxima


def _of_replicas(function: Callable[[Array], Any], replicas: int) -> Callable[[Array], Any]:
    """`function` of each replica's rows, with a leading axis over replicas where there are several."""
    if replicas == 1:
        return function

    def of_replicas(tokens: Array) -> Any:
        with nn.logical_axis_rules(scale.RULES_WITHIN_REPLICA):
            rows = tokens.reshape(replicas, -1, *tokens.shape[1:])
            return jax.vmap(function, spmd_axis_name="replica")(rows)

    return of_replicas


def evaluation_sums(
    setup: Setup, weights: Weights, tokens_BS: Int[Array, "B T+1"], valid_B: Bool[Array, " B"]
) -> LossSums:
    """The sums of a batch's loss over its valid rows, in the step's micro-batches."""

    def sums_of(batch: tuple[Array, Array]) -> LossSums:
        return loss_sums(setup, weights, *batch)[1][0]

    batch, count = (tokens_BS, valid_B), setup.config.train.accumulation
    zero = _zeros_of(sums_of, batch)
    return scan_micro_batches(lambda sums, part: jax.tree.map(jnp.add, sums, sums_of(part)), zero, batch, count)


def output_moments(setup: Setup, tokens_BT: Int[Array, "B T"], weights: Weights) -> dict[str, Moments]:
    """Moments of what every matrix puts out on a batch, by its path, one row per device in memory at a time."""
    rows_per_device = len(tokens_BT) // (setup.mesh.shape["replica"] * setup.mesh.shape["fsdp"])

    def of_rows(tokens_BT: Array) -> dict[str, Moments]:
        return linen_moments(setup.model, weights, tokens_BT, segments(setup, tokens_BT))

    def merge(number: Array, old: Moments, new: Moments) -> Moments:
        """The moments of `number` micro-batches of equal size, given `old` of all but the last and `new` of the last.

        Source: Chan et al. 1983.
        """
        mean = old.mean + (new.mean - old.mean) / number
        between = (new.mean - old.mean) * (new.mean - mean)
        return Moments(mean, old.variance + (new.variance + between - old.variance) / number)

    def add(carry: Any, tokens_BT: Array) -> Any:
        number, moments = carry
        new = of_rows(tokens_BT)
        return number + 1, {path: merge(number, old, new[path]) for path, old in moments.items()}

    return scan_micro_batches(add, (jnp.ones(()), _zeros_of(of_rows, tokens_BT)), tokens_BT, rows_per_device)[1]
