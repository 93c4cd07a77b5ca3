"""clip -> update rule -> clip of its update -> decoupled weight decay -> schedule -> projection, by the table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxstab.config import (
    ConfigError,
    MethodConfig,
    Options,
    Range,
    build_method,
    method_section,
    option,
    section,
    unknown,
)
from jaxstab.optimize import clipping, decays, projections
from jaxstab.optimize.adam import adamw, batch_adamw, cautious_adamw, stable_adamw
from jaxstab.optimize.layers import TransformationFactory, is_masked
from jaxstab.optimize.mu_centering import mu_centering
from jaxstab.optimize.muon import muon
from jaxstab.optimize.normuon import normuon
from jaxstab.optimize.projections import Projection
from jaxstab.optimize.qk_clip import qk_clip
from jaxstab.optimize.recent_norms import recent_norms
from jaxstab.optimize.restart import gradient_norms, restarted
from jaxstab.optimize.schedules import constant, cosine, linear, warmup_stable_decay, with_warmup
from jaxstab.optimize.spam import spam
from jaxstab.table import MATRICES, VECTORS, Row, Table

OPTIMIZERS: dict[str, Callable[..., TransformationFactory]] = {
    "adamw": adamw,
    "stable_adamw": stable_adamw,
    "cautious_adamw": cautious_adamw,
    "batch_adamw": batch_adamw,
    "muon": muon,
    "normuon": normuon,
    "spam": spam,
}
CLIPS: dict[str, Callable[..., TransformationFactory]] = {
    "global_norm": clipping.global_norm,
    "adagc": clipping.adagc,
    "zclip": clipping.zclip,
    "recent_norms": recent_norms,
    "none": clipping.none,
}
DECAYS: dict[str, Callable[..., decays.Decay]] = {
    "decoupled": decays.decoupled,
    "adamc": decays.adamc,
    "cautious": decays.cautious,
    "hyperball": decays.hyperball,
}
PROJECTIONS: dict[str, Callable[..., Projection]] = {
    "none": projections.none,
    "qk_clip": qk_clip,
    "mu_centering": mu_centering,
}
SCHEDULES = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "warmup_stable_decay": warmup_stable_decay,
}

RuleConfig = method_section("RuleConfig", OPTIMIZERS, "adamw", "Update rule (jaxstab/optimize).")
ClipConfig = method_section("ClipConfig", CLIPS, "global_norm", "Gradient clipping (jaxstab/optimize/clipping.py).")
UpdateClipConfig = method_section(
    "UpdateClipConfig", CLIPS, "none", "Clipping of the update that the rule makes, before decay and rate."
)
DecayConfig = method_section("DecayConfig", DECAYS, "decoupled", "What decays (jaxstab/optimize/decays.py).")
ProjectionConfig = method_section(
    "ProjectionConfig", PROJECTIONS, "none", "What is done to weights after an update (jaxstab/optimize)."
)
ScheduleConfig = method_section(
    "ScheduleConfig",
    SCHEDULES,
    "cosine",
    "Learning rate after warmup. Nishida et al. state none; cosine to a tenth is that of Llama, their model.",
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Options):
    """The optimizer. Defaults are Nishida et al. 2024, Table 11, rapid setting."""

    rule: MethodConfig = section(RuleConfig)
    clip: MethodConfig = section(ClipConfig)
    update_clip: MethodConfig = section(UpdateClipConfig)
    decay: MethodConfig = section(DecayConfig)
    schedule: MethodConfig = section(ScheduleConfig)
    projection: MethodConfig = section(ProjectionConfig)
    learning_rate: float = option(1e-3, "Peak learning rate.", Range(0))
    warmup: int = option(100, "Updates of linear warmup.", Range(0))
    weight_decay: float = option(0.01, "Decoupled weight decay of the matrices; norms and biases have none.", Range(0))
    independent_decay: bool = option(
        False,
        "Whether decay follows the schedule alone, not times the peak learning rate (Wortsman et al. 2023).",
    )
    decay_factors: tuple[str, ...] = option(
        (),
        "Weight decay by role, as role=factor, where it isn't that of all matrices: `embed_tokens=0` has none (OLMo 2 "
        "and 3), `gate=1` makes gates decay as matrices do, which Nishida et al. leave open.",
    )
    decay_schedule: str = option(
        "constant", "Weight decay over the run: constant, or falling to 0 at its end.", choices=("constant", "linear")
    )
    clip_vectors: bool = option(
        True,
        "Whether gates, norms and biases are clipped too, and count in the norms that are (Falcon-LLM Team 2026 leave "
        "multipliers out: gates many matrices feel have large gradients).",
    )
    clip_on: str = option(
        "raw",
        "The gradient that is clipped: that of the stored parameters, as PyTorch does, or of the effective weights.",
        choices=("raw", "effective"),
    )

    restart_above: float = option(
        0.0,
        "After a step that the guard skips, first moments start from zero in the layers of parameters whose gradient "
        "norm was more than so many times its running average (the momentum reset of Huang et al. 2025); 0 restarts "
        "none.",
        Range(0),
    )

    def decay_of(self, row: Row) -> float:
        """A parameter's weight decay, as a multiple of `weight_decay`; raises ConfigError for an unknown role."""
        factors = self._decay_factors
        return factors[row.role] * (row.decay or 1.0) if row.role in factors else row.decay

    def decays(self, role: str) -> bool:
        """Whether a role that usually has no decay is given one."""
        return bool(self._decay_factors.get(role))

    @functools.cached_property
    def _decay_factors(self) -> dict[str, float]:
        factors = {}
        for given in self.decay_factors:
            role, _, factor = given.partition("=")
            if role not in MATRICES + VECTORS:
                raise ConfigError(unknown(f"role in optimizer.decay_factors={given}", role, MATRICES + VECTORS))
            try:
                factors[role] = float(factor)
            except ValueError:
                raise ConfigError(f"optimizer.decay_factors={given} must be role=factor: embed_tokens=0") from None
        return factors

    @property
    def eps(self) -> float:
        """Adam's epsilon, of the chosen rule."""
        return getattr(self.rule, self.rule.method).eps


class Hypers(NamedTuple):
    """What a sweep or a roll-back varies: traced values, so that a grid of runs is one program.

    Attributes:
      learning_rate: its peak.
      weight_decay: decoupled.
      max_norm: the global norm that gradients are brought down to before the run's own clipping; None for none.
      position: where the update stands on the schedule, from 0: in a run the number of steps before it, those that were
        skipped included. None takes the optimizer's own count of updates.
    """

    learning_rate: ArrayLike
    weight_decay: ArrayLike
    max_norm: ArrayLike | None = None
    position: ArrayLike | None = None

    def on_schedule(self, updates: Int[Array, ""]) -> Int[Array, ""]:
        """The position, or the optimizer's own count of `updates` where none is given."""
        return updates if self.position is None else jnp.asarray(self.position)


class Optimizer(NamedTuple):
    """The two transformations of a step, its schedule and its projection, and what a skip does.

    Attributes:
      clip: applied to the raw or to the effective gradient.
      update: from clipped raw gradients to updates; takes the extra argument `hypers`, and where `restart` isn't None
        `gradients`, raw ones before clipping.
      rule: the first of the parts of `update`, up to and with the update rule; its state is the first of the parts too.
      schedule: position -> fraction of the peak learning rate.
      project: (raw parameters after the update, forward maxima) -> raw parameters; see `Projection`.
      restart: (state of `update`, raw gradients before clipping, whether the step is skipped) -> the state that a step
        leaves that isn't taken, and how many layers of parameters start anew in it; None where none ever does.
    """

    clip: optax.GradientTransformation
    update: optax.GradientTransformationExtraArgs
    rule: optax.GradientTransformation
    schedule: Callable[[jax.Array], Float[Array, ""]]
    project: Callable[[Any, Mapping[str, Array]], Any]
    restart: Callable[[Any, Any, Bool[Array, ""]], tuple[Any, Float[Array, ""]]] | None = None


def build(config: OptimizerConfig, table: Table, steps: int, effective: Table | None = None) -> Optimizer:
    """The optimizer of a run of `steps` updates.

    Args:
      config: its keys.
      table: rows of the stored parameters.
      steps: updates that the schedule is laid over.
      effective: rows of the effective weights, whose gradient is clipped with `clip_on=effective`; the same by default.
    """
    if config.warmup > steps:
        raise ConfigError(f"optimizer.warmup={config.warmup} is longer than the run, train.steps={steps}")
    schedule = with_warmup(build_method(config.schedule, SCHEDULES), config.warmup, steps)
    rule = _scale(jax.tree.map(lambda row: 1 / row.eps, table)), build_method(config.rule, OPTIMIZERS)(table)
    clip_and_rate = build_method(config.update_clip, CLIPS)(table), _decay_and_rate(config, table, schedule, steps)
    clipped = effective if effective is not None and config.clip_on == "effective" else table
    project = functools.partial(build_method(config.projection, PROJECTIONS).project, table)
    above = config.restart_above
    update = optax.chain(*rule, *clip_and_rate, *([gradient_norms(table, above)] if above else []))
    restart = functools.partial(restarted, table, above) if above else None
    return Optimizer(_clip(config, clipped), update, optax.chain(*rule), schedule, project, restart)


def _clip(config: OptimizerConfig, table: Table) -> optax.GradientTransformation:
    factory = build_method(config.clip, CLIPS)
    if config.clip_vectors:
        return factory(table)
    matrices = jax.tree.map(lambda row: row if row.is_matrix else optax.MaskedNode(), table)
    return optax.masked(factory(matrices), jax.tree.map(lambda row: row.is_matrix, table))


def last_rate(config: OptimizerConfig) -> float:
    """The rate that a run ends at, and that updates after its end have, as a fraction of the peak."""
    return float(build_method(config.schedule, SCHEDULES)(1.0))


def state_shardings(transformation: Any, state: Any, parameters: Any, other: Any) -> Any:
    """The shardings of a transformation's state.

    Args:
      transformation: an optax transformation.
      state: its (abstract) state.
      parameters: the shardings of the parameters, which state in their structure (moments) shares.
      other: the sharding of everything else.
    """

    return optax.tree_utils.tree_map_params(
        transformation,
        lambda leaf, sharding: leaf if is_masked(leaf) else sharding,
        state,
        parameters,
        transform_non_params=lambda _: other,
        is_leaf=is_masked,
    )


def _scale(multipliers: Any) -> optax.GradientTransformation:
    """Scales every gradient by its constant: Adam on g / m with eps is Adam on g with m * eps."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda g, m: g if m == 1 else m * g, updates, multipliers))


def _decay_and_rate(config: OptimizerConfig, table: Table, schedule: Callable[..., Any], steps: int) -> Any:
    """-s_t m η (u + λ W) or what the decay rule makes of it; -s_t m (η u + λ W) with independent decay (Wortsman et al.
    2023, section 3.4).
    """
    rule = build_method(config.decay, DECAYS)
    factors = jax.tree.map(config.decay_of, table)

    def update(updates: Any, state: Any, params: Any, *, hypers: Hypers, **_: Any) -> tuple[Any, Any]:
        position = hypers.on_schedule(state.count)
        shape, weight_decay = schedule(position), hypers.weight_decay
        if config.decay_schedule == "linear":
            weight_decay = weight_decay * jnp.maximum(1 - position / steps, 0)

        def leaf(row: Row, factor: float, u: jax.Array, w: jax.Array) -> jax.Array:
            scale = shape * row.learning_rate
            rate = scale * hypers.learning_rate
            decay = factor * weight_decay * (scale if config.independent_decay else rate) if factor else None
            return rule(row, u, w, rate, decay, shape)

        return jax.tree.map(leaf, table, factors, updates, params), optax.ScaleByScheduleState(state.count + 1)

    init = optax.scale_by_schedule(schedule).init
    return optax.GradientTransformationExtraArgs(init, update)
