"""Instruments: what full measurements have by choice, of the step that a state is about to take.

They speak of the step's own loss, the mean over its whole batch, as a function of what is stored. Its gradient and
update are the step's; losses along the update and products with the Hessian are computed in float32, with chunked
attention where the run has a fused kernel, whose gradients have no derivative, and all activations computed again.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxstab import stability
from jaxstab.config import ConfigError
from jaxstab.optimize import Hypers, inverse_preconditioner
from jaxstab.table import Raw, Weights, named_rows
from jaxstab.train import objective
from jaxstab.train.jacobians import block_jacobians
from jaxstab.train.setup import Setup
from jaxstab.train.state import TrainState
from jaxstab.train.step import StepGradients, step_gradients

LANCZOS_STEPS = 10


class Step(NamedTuple):
    """The step that a state is about to take on a batch, and what instruments ask about it.

    Attributes:
      setup, state, tokens_BS, hypers: what it is taken with.
      gradients: of the batch.
      updates: what it adds to the stored parameters, before any projection.
      rate: its learning rate η.
      inverse_preconditioner: P⁻¹; None where the rule has none.
    """

    setup: Setup
    state: TrainState
    tokens_BS: Int[Array, "B T+1"]
    hypers: Hypers
    gradients: StepGradients
    updates: Raw
    rate: Float[Array, ""]
    inverse_preconditioner: Raw | None

    @classmethod
    def of(cls, setup: Setup, state: TrainState, tokens_BS: Int[Array, "B T+1"], hypers: Hypers) -> Step:
        """The step; what no instrument asks for, XLA leaves out."""
        optimizer, gradients = setup.optimizer, step_gradients(setup, state, tokens_BS, hypers)
        updates, _ = optimizer.update.update(
            gradients.clipped, state.optimizer, state.raw, hypers=hypers, gradients=gradients.raw
        )
        rate = jnp.asarray(hypers.learning_rate) * optimizer.schedule(hypers.on_schedule(state.step))
        inverse = None
        if has_preconditioner(setup):
            inverse = inverse_preconditioner(optimizer, setup.stored_table, gradients.clipped, state.optimizer)
        return cls(setup, state, tokens_BS, hypers, gradients, updates, rate, inverse)

    def _weights(self, raw: Raw) -> Weights:
        return self.setup.reparam.merge(raw, self.state.reparam)

    def hessian_product(self, v: Raw) -> Raw:
        """H v of the mean loss by what is stored: the derivative of its gradient along v, forward over reverse.

        Micro-batches are a quarter of the step's, where the devices divide them: there are tangents of everything.
        """
        setup = differentiable(self.setup)
        rows, mesh = len(self.tokens_BS), setup.mesh.shape
        most = max(rows // setup.config.train.accumulation // 4, mesh["replica"] * mesh["fsdp"])
        micro_batches = objective.least_count(rows, most)

        def gradient(raw: Raw) -> Raw:
            weights, pullback = jax.vjp(self._weights, raw)
            gradients, *_ = objective.mean_gradients(setup, weights, self.tokens_BS, micro_batches)
            return pullback(gradients)[0]

        return jax.jvp(gradient, (self.state.raw,), (v,))[1]

    def loss_after(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """The mean loss after t times the update."""
        raw = jax.tree.map(lambda stored, update: stored + t * update, self.state.raw, self.updates)
        valid_B = jnp.ones(len(self.tokens_BS), bool)
        sums = objective.evaluation_sums(differentiable(self.setup), self._weights(raw), self.tokens_BS, valid_B)
        return (sums.cross_entropy + self.setup.config.train.z_loss * sums.z_loss) / sums.targets


def measured(setup: Setup, state: TrainState, tokens_BS: Int[Array, "B T+1"], hypers: Hypers) -> dict[str, Array]:
    """The measurements of the instruments that `stability.instruments` names, {"stability/<measurement>": value}.

    They are float32, and scalars but for those of layers and heads.
    """
    chosen = setup.config.stability.instruments
    if not chosen:
        return {}
    step = Step.of(setup, state, tokens_BS, hypers)
    statistics: dict[str, Array] = {}
    for name in chosen:
        statistics |= BY_NAME[name](step)
    return {f"stability/{name}": value for name, value in statistics.items()}


def differentiable(setup: Setup) -> Setup:
    """The same run with a model in float32 that can be differentiated twice."""
    kernel = setup.model.config.attention
    plain = kernel if kernel in ("xla", "chunked") else "chunked"
    return setup.with_model(dtype="float32", remat="full", attention=plain)


def check(setup: Setup) -> None:
    """Raises ConfigError where an instrument needs what the run hasn't got."""
    if "eigenvalue" in setup.config.stability.instruments and not has_preconditioner(setup):
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


def curvature(step: Step) -> dict[str, Array]:
    """Curvature along the gradient g before clipping and the update Δ, and how far along Δ the loss falls.

    - curvature/gradient gᵀHg/‖g‖² and curvature/update ΔᵀHΔ/‖Δ‖², H the Hessian by the stored parameters
    - curvature/preconditioned gᵀP⁻¹Hg/‖g‖², where the rule has a P (`inverse_preconditioner`): Adam spiked where it
      stayed above 2/η (Bai et al. 2025, arXiv:2506.04805; certainty: secondary)
    - critical_step: see the function of this name; and critical_sharpness 2/(η critical_step) (Kalra et al. 2026,
      arXiv:2601.16979; certainty: secondary): above 2/η the step raises its own loss
    """
    inverse = step.inverse_preconditioner

    def of_direction(direction: Raw) -> tuple[Array, Array]:
        product = step.hessian_product(direction)
        left = None if inverse is None else _times(inverse, direction)
        return stability.quotient(direction, product), stability.quotient(direction, product, left)

    both = jax.tree.map(lambda *directions: jnp.stack(directions), step.gradients.raw, step.updates)
    (along_g, along_update), (preconditioned, _) = jax.lax.map(of_direction, both)  # one program for both
    critical = stability.critical_step(step.loss_after)
    statistics = {
        "curvature/gradient": along_g,
        "curvature/update": along_update,
        "critical_step": critical,
        "critical_sharpness": jnp.where(step.rate > 0, 2 / (step.rate * critical), 0.0),
    }
    return statistics if inverse is None else statistics | {"curvature/preconditioned": preconditioned}


def eigenvalue(step: Step) -> dict[str, Array]:
    """preconditioned_eigenvalue: the largest of P⁻¹H, from below, by Lanczos steps that begin along the gradient.

    Adam is stable below (2 + 2 b1)/((1 - b1) η), which is 38/η for b1 = 0.9, and trains at that edge (Cohen et al.
    2022, arXiv:2207.14484; certainty: primary, on whole sets of data; of a batch it is larger).
    """
    root = jax.tree.map(jnp.sqrt, step.inverse_preconditioner)

    def symmetric(v: Raw) -> Raw:  # P^-½ H P^-½, whose eigenvalues are those of P⁻¹H
        return _times(root, step.hessian_product(_times(root, v)))

    start = _times(root, step.gradients.raw)
    return {"preconditioned_eigenvalue": stability.largest_eigenvalue(symmetric, start, LANCZOS_STEPS)}


def entropy(step: Step) -> dict[str, Array]:
    """qk_update_entropy/<head>, `[L]`: see `product_change_entropy`, of W_q W_kᵀ of every head in this step.

    Source: spectral entropy of ΔW_qk (arXiv:2606.28116; certainty: secondary, known from a summary: that Δ is that of a
    step, and that entropies are of singular values, is ours). Biases, norms of queries and keys and rotations are no
    part of it.
    """
    new_raw = optax.apply_updates(step.state.raw, step.updates)
    new_weights, _ = step.setup.reparam.effective(new_raw, step.gradients.reparam)
    head_dim = step.setup.config.model.head_dim

    def heads(weights: Weights, name: str) -> Float[Array, "L H D K"]:
        kernel_LDI = weights["layers"]["self_attn"][name]["kernel"]
        return jnp.moveaxis(kernel_LDI.reshape(*kernel_LDI.shape[:2], -1, head_dim), 2, 1)

    q_LHDK, new_q_LHDK = (heads(weights, "q_proj") for weights in (step.gradients.weights, new_weights))
    k_LGDK, new_k_LGDK = (heads(weights, "k_proj") for weights in (step.gradients.weights, new_weights))
    queries = q_LHDK.shape[1] // k_LGDK.shape[1]  # of one key
    k_LHDK, new_k_LHDK = (jnp.repeat(k, queries, axis=1) for k in (k_LGDK, new_k_LGDK))
    of_heads = jax.vmap(jax.vmap(stability.product_change_entropy))
    entropy_LH = of_heads(q_LHDK, k_LHDK, new_q_LHDK - q_LHDK, new_k_LHDK - k_LHDK)
    return {f"qk_update_entropy/{head}": entropy_LH[:, head] for head in range(q_LHDK.shape[1])}


def jacobians(step: Step) -> dict[str, Array]:
    """Those of whole blocks, on the batch's first sequence: see `block_jacobians`."""
    first_BT = step.tokens_BS[:1, :-1]
    weights = step.setup.reparam.merge(step.state.raw, step.state.reparam)
    return block_jacobians(step.setup.model, weights, first_BT, objective.segments(step.setup, first_BT))


BY_NAME = {"curvature": curvature, "eigenvalue": eigenvalue, "entropy": entropy, "jacobians": jacobians}


def _times(one: Raw, other: Raw) -> Raw:
    return jax.tree.map(jnp.multiply, one, other)
