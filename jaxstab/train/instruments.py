"""Instruments: what full measurements have by choice, of the step that a state is about to take.

They speak of the step's own loss, the mean over its whole batch, as a function of what is stored. Its gradient and
update are the step's; losses along the update and products with the Hessian are computed in float32, with chunked
attention where the run has a fused kernel, whose gradients have no derivative, and all activations computed again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxstab import stability
from jaxstab.config import ConfigError
from jaxstab.model.transformer import Transformer
from jaxstab.optimize import Hypers, inverse_preconditioner
from jaxstab.table import Raw, named_rows
from jaxstab.train import objective
from jaxstab.train.setup import Setup
from jaxstab.train.state import TrainState
from jaxstab.train.step import StepGradients, step_gradients

LANCZOS_STEPS = 10


def measured(setup: Setup, state: TrainState, tokens_BS: Int[Array, "B T+1"], hypers: Hypers) -> dict[str, Array]:
    """The measurements of the instruments that `stability.instruments` names.

    curvature (H the Hessian by the stored parameters, g the gradient before clipping, Δ the update, η the rate):
    - curvature/gradient gᵀHg/‖g‖² and curvature/update ΔᵀHΔ/‖Δ‖²
    - curvature/preconditioned gᵀP⁻¹Hg/‖g‖², where the rule has a P (`inverse_preconditioner`): Adam spiked where it
      stayed above 2/η (Bai et al. 2025, arXiv:2506.04805; secondary)
    - critical_step: see the function of this name; and critical_sharpness 2/(η critical_step) (Kalra et al. 2026,
      arXiv:2601.16979; secondary): above 2/η the step raises its own loss

    eigenvalue:
    - preconditioned_eigenvalue: the largest of P⁻¹H, from below, by Lanczos steps that begin along the gradient. Adam
      is stable below (2 + 2 b1)/((1 - b1) η), which is 38/η for b1 = 0.9 (Cohen et al. 2022, arXiv:2207.14484; primary)

    Returns:
      {"stability/<measurement>": value}, float32 scalars.
    """
    chosen = setup.config.stability.instruments
    statistics: dict[str, Array] = {}
    if not chosen:
        return statistics
    of_step = step_gradients(setup, state, tokens_BS, hypers)
    plain = _differentiable(setup)
    product = _hessian_product(plain, state, tokens_BS)
    inverse = None
    if has_preconditioner(setup):
        inverse = inverse_preconditioner(setup.optimizer, setup.stored_table, of_step.clipped, state.optimizer)
    if "curvature" in chosen:
        statistics |= _curvature(plain, state, tokens_BS, hypers, of_step, product, inverse)
    if "eigenvalue" in chosen:
        statistics["preconditioned_eigenvalue"] = _preconditioned_eigenvalue(product, of_step.raw, inverse)
    return {f"stability/{name}": value for name, value in statistics.items()}


def check(setup: Setup) -> None:
    """Raises ConfigError where an instrument needs what the run hasn't got."""
    chosen = setup.config.stability.instruments
    if chosen and setup.mesh.size > 1:
        raise ConfigError(
            f"stability.instruments={chosen} on {setup.mesh.size} devices haven't been held against one device: leave "
            "them out"
        )
    if "eigenvalue" in chosen and not has_preconditioner(setup):
        raise ConfigError(
            f"stability.instruments=eigenvalue needs an update rule with Adam's moments for every parameter and b1 "
            f"above 0, which optimizer.rule.method={setup.config.optimizer.rule.method} hasn't; leave it out"
        )


def has_preconditioner(setup: Setup) -> bool:
    """Whether the rule keeps both moments of every stored entry, the first of them over steps."""
    shapes = jax.tree.map(lambda row: jax.ShapeDtypeStruct(row.shape, jnp.float32), setup.stored_table)
    moments = stability.moments(setup.stored_table, jax.eval_shape(setup.optimizer.update.init, shapes))
    names, rule = named_rows(setup.stored_table).keys(), setup.config.optimizer.rule
    return all(moments.get(kind, {}).keys() == names for kind in ("mu", "nu")) and getattr(rule, rule.method).b1 > 0


def _differentiable(setup: Setup) -> Setup:
    """The same run with a model in float32 that can be differentiated twice."""
    config = setup.model.config
    kernel = config.attention if config.attention in ("xla", "chunked") else "chunked"
    model = Transformer(dataclasses.replace(config, dtype="float32", remat="full", attention=kernel))
    return dataclasses.replace(setup, model=model)


def _hessian_product(setup: Setup, state: TrainState, tokens_BS: Int[Array, "B T+1"]) -> Callable[[Raw], Raw]:
    """v -> H v of the batch's mean loss by what is stored: the derivative of its gradient, forward over reverse.

    Micro-batches are a quarter of the step's, where the devices divide them: there are tangents of everything.
    """
    rows, mesh = len(tokens_BS), setup.mesh.shape
    most = max(rows // setup.config.train.accumulation // 4, mesh["replica"] * mesh["fsdp"])
    micro_batches = objective.least_count(rows, most)

    def gradient(raw: Raw) -> Raw:
        weights, pullback = jax.vjp(lambda raw: setup.reparam.merge(raw, state.reparam), raw)
        return pullback(objective.mean_gradients(setup, weights, tokens_BS, micro_batches)[0])[0]

    return lambda v: jax.jvp(gradient, (state.raw,), (v,))[1]


def _curvature(
    setup: Setup,
    state: TrainState,
    tokens_BS: Int[Array, "B T+1"],
    hypers: Hypers,
    of_step: StepGradients,
    product: Callable[[Raw], Raw],
    inverse: Raw | None,
) -> dict[str, Array]:
    updates, _ = setup.optimizer.update.update(of_step.clipped, state.optimizer, state.raw, hypers=hypers)

    def of_direction(direction: Raw) -> tuple[Array, Array]:
        along = product(direction)
        left = None if inverse is None else jax.tree.map(jnp.multiply, inverse, direction)
        return stability.quotient(direction, along), stability.quotient(direction, along, left)

    both = jax.tree.map(lambda *directions: jnp.stack(directions), of_step.raw, updates)
    plain_2, preconditioned_2 = jax.lax.map(of_direction, both)  # one program for both
    critical = stability.critical_step(_loss_along(setup, state, tokens_BS, updates))
    rate = hypers.learning_rate * setup.optimizer.schedule(hypers.on_schedule(state.step))
    statistics = {
        "curvature/gradient": plain_2[0],
        "curvature/update": plain_2[1],
        "critical_step": critical,
        "critical_sharpness": jnp.where(rate > 0, 2 / (rate * critical), 0.0),
    }
    return statistics if inverse is None else statistics | {"curvature/preconditioned": preconditioned_2[0]}


def _loss_along(
    setup: Setup, state: TrainState, tokens_BS: Int[Array, "B T+1"], updates: Raw
) -> Callable[[Array], Array]:
    """t -> the batch's mean loss after t times the update."""
    valid_B = jnp.ones(len(tokens_BS), bool)

    def loss_at(t: Array) -> Array:
        raw = jax.tree.map(lambda stored, update: stored + t * update, state.raw, updates)
        weights = setup.reparam.merge(raw, state.reparam)
        sums = objective.evaluation_sums(setup, weights, tokens_BS, valid_B)
        return (sums.cross_entropy + setup.config.train.z_loss * sums.z_loss) / sums.targets

    return loss_at


def _preconditioned_eigenvalue(product: Callable[[Raw], Raw], raw_gradients: Raw, inverse: Raw | None) -> Array:
    """The largest eigenvalue of P^-½ H P^-½, which has those of P⁻¹H and is symmetric."""
    root = jax.tree.map(jnp.sqrt, inverse)

    def symmetric(v: Raw) -> Raw:
        return jax.tree.map(jnp.multiply, root, product(jax.tree.map(jnp.multiply, root, v)))

    start = jax.tree.map(jnp.multiply, root, raw_gradients)
    return stability.largest_eigenvalue(symmetric, start, LANCZOS_STEPS)
