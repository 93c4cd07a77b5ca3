"""The training step: one pure function of the setup, the state, a batch and the hyper-parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxstab import data, stability
from jaxstab.model.loss import LossSums
from jaxstab.numerics import widened
from jaxstab.optimize import Hypers
from jaxstab.table import Gradients, Raw, RawGradients, Side, Table, Tree, Weights
from jaxstab.train import objective
from jaxstab.train.packed import Measurements, scalars_and_vectors
from jaxstab.train.setup import Setup
from jaxstab.train.state import TrainState


class StepGradients(NamedTuple):
    """What a step knows before its update.

    Attributes:
      weights, reparam: effective weights, and the next state of the reparameterization.
      gradients, raw: by the effective weights and by what is stored, of the global norms `norm_effective` and `norm`.
      clipped: the gradient by what is stored that the update rule takes; with the clip's next state, and whether
        clipping changed it.
      sums, maxima: of the loss and of the forward pass.
    """

    weights: Weights
    reparam: Any
    gradients: Gradients
    raw: RawGradients
    norm: Float[Array, ""]
    norm_effective: Float[Array, ""]
    clipped: RawGradients
    clip: Any
    was_clipped: Bool[Array, ""]
    sums: LossSums
    maxima: objective.ForwardMaxima


def step_gradients(setup: Setup, state: TrainState, tokens_BS: Int[Array, "B T+1"], hypers: Hypers) -> StepGradients:
    """The gradients of a batch, and what clipping makes of them."""
    weights: Weights
    weights, pullback, reparam_state = jax.vjp(
        lambda raw: setup.reparam.effective(raw, state.reparam), state.raw, has_aux=True
    )
    gradients, sums, maxima = objective.mean_gradients(setup, weights, tokens_BS, setup.config.train.accumulation)
    raw_gradients: RawGradients
    (raw_gradients,) = pullback(gradients)
    norms = stability.global_norm(setup.stored_table, raw_gradients), stability.global_norm(setup.table, gradients)
    clipped, clip, was_clipped = _clipped_raw_gradients(
        setup, hypers, pullback, gradients, raw_gradients, norms, state.clip
    )
    return StepGradients(
        weights, reparam_state, gradients, raw_gradients, *norms, clipped, clip, was_clipped, sums, maxima
    )


def train_step(
    setup: Setup, state: TrainState, tokens_BS: Int[Array, "B T+1"], hypers: Hypers
) -> tuple[TrainState, Measurements]:
    """One update of the stored parameters, where the guard lets it through.

    Returns:
      The next state, and what was measured: scalars, and vectors over layers, by name.
    """
    config, table, reparam, optimizer = setup.config, setup.table, setup.reparam, setup.optimizer
    of_step = step_gradients(setup, state, tokens_BS, hypers)
    sums, norm, norm_effective = of_step.sums, of_step.norm, of_step.norm_effective

    loss = sums.cross_entropy / sums.targets
    finite = jnp.isfinite(jnp.stack([loss, norm, norm_effective])).all()
    verdict = stability.judge(config.stability, state.guard, jnp.stack([loss, norm, jnp.nan]), finite)
    with jax.named_scope("optimizer"):
        updates, rule = optimizer.update.update(
            of_step.clipped, state.optimizer, state.raw, hypers=hypers, gradients=of_step.raw
        )
        new_raw: Raw = optimizer.project(optax.apply_updates(state.raw, updates), of_step.maxima)
    update_norm = stability.global_norm(setup.stored_table, updates)
    readings_Q = jnp.stack([loss, norm, update_norm])
    guard, verdict = stability.advance(config.stability, state.guard, verdict, readings_Q)
    new = TrainState(state.step + 1, new_raw, of_step.reparam, of_step.clip, rule, guard)
    untaken, restarts = _untaken(setup, state._replace(guard=guard), of_step.raw, ~verdict.taken & ~guard.halted)
    next_state = jax.tree.map(functools.partial(jnp.where, verdict.taken), new, untaken)
    position = hypers.on_schedule(state.step)
    scalars: dict[str, Any] = {
        **_loss_means(setup, sums),
        "train/grad_norm": norm,
        "train/grad_norm_effective": norm_effective,
        "train/update_norm": update_norm,
        "train/clipped": of_step.was_clipped,
        "train/learning_rate": hypers.learning_rate * optimizer.schedule(position),
        "train/finite": verdict.finite,
        "train/spike": verdict.spike,
        "train/skipped": ~verdict.taken,
        "train/halted": guard.halted,
        "train/batch_digest": data.batch_digest(tokens_BS).astype(jnp.float32),
    }
    scalars |= restarts | stability.detector_metrics(state.guard, readings_Q, position)
    scalars = {name: widened(value) for name, value in scalars.items()}
    if config.stability.measure == "off":
        return next_state, (scalars, {})
    statistics = stability.step_statistics(
        table,
        setup.stored_table,
        raw=state.raw,
        weights=of_step.weights,
        raw_gradients=of_step.raw,
        gradients=of_step.gradients,
        clipped_raw_gradients=of_step.clipped,
        updates=updates,
        new_weights=None if reparam.constant else reparam.effective(new_raw, of_step.reparam)[0],
        eps=config.optimizer.eps,
    )
    statistics |= stability.vector_statistics(setup.stored_table, state.raw, of_step.raw, updates)
    statistics |= stability.state_statistics(
        setup.stored_table, state.raw, next_state.raw, state.optimizer, of_step.clipped
    )
    measured, vectors = scalars_and_vectors(statistics)
    return next_state, (scalars | measured, vectors)


def _untaken(
    setup: Setup, state: TrainState, raw_gradients: RawGradients, skipped: Bool[Array, ""]
) -> tuple[TrainState, dict[str, Array]]:
    """What a step leaves that isn't taken: `state`, in which moments may start anew after a skip, and how many do."""
    if setup.optimizer.restart is None:
        return state, {}
    moments, count = setup.optimizer.restart(state.optimizer, raw_gradients, skipped)
    return state._replace(optimizer=moments), {"train/restarted": count}


def _loss_means(setup: Setup, sums: LossSums) -> dict[str, Array]:
    """Means over the batch's targets."""
    return {
        "train/loss": sums.cross_entropy / sums.targets,
        "train/z_loss": setup.config.train.z_loss * sums.z_loss / sums.targets,
        "train/log_z": sums.log_z / sums.targets,
    }


@jax.named_scope("optimizer")
def _clipped_raw_gradients(
    setup: Setup,
    hypers: Hypers,
    pullback: Callable[[Gradients], tuple[RawGradients]],
    gradients: Gradients,
    raw_gradients: RawGradients,
    norms: tuple[Array, Array],
    state: Any,
) -> tuple[RawGradients, Any, Bool[Array, ""]]:
    """What the update rule takes: the gradient clipped as `clip_on` says, the clip's state, whether that changed it.

    Args:
      setup, hypers: of the step.
      pullback: from gradients by the effective weights to those of what is stored.
      gradients, raw_gradients: by either, and `norms` theirs: (raw, effective).
      state: of the clip.
    """
    clipped: RawGradients
    if setup.config.optimizer.clip_on == "effective":
        effective, state, was_clipped = _clipped(setup, setup.table, hypers, gradients, norms[1], state)
        (clipped,) = pullback(effective)
    else:
        clipped, state, was_clipped = _clipped(setup, setup.stored_table, hypers, raw_gradients, norms[0], state)
    # Made once: XLA would clip anew for every moment, which keeps old moments alive beside the new ones.
    return jax.lax.optimization_barrier(clipped), state, was_clipped


def _clipped(
    setup: Setup, table: Table[Side], hypers: Hypers, gradients: Tree[Side], norm: Float[Array, ""], state: Any
) -> tuple[Tree[Side], Any, Bool[Array, ""]]:
    """Clips gradients, whose norm is `norm`, as a roll-back asks and by the run's rule.

    Returns:
      The clipped gradients, the rule's state, and whether clipping changed them.
    """
    clipped, state = setup.optimizer.clip.update(_at_most(hypers.max_norm, gradients, norm), state)
    return clipped, state, stability.global_norm(table, clipped) < 0.9999 * norm


def _at_most(max_norm: ArrayLike | None, gradients: Tree[Side], norm: Float[Array, ""]) -> Tree[Side]:
    """Scales gradients, whose norm is `norm`, down to `max_norm`: in a run inf, but for a while after a roll-back."""
    if max_norm is None:
        return gradients
    factor = jnp.where(norm > max_norm, max_norm / norm, 1.0)
    return jax.tree.map(lambda gradient: factor * gradient, gradients)
