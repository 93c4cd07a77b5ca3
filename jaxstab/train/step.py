"""The training step: one pure function of the state and a batch, jitted with the shardings of its mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxstab import initialize, optimize, scale, stability
from jaxstab.config import ConfigError, build_method
from jaxstab.data import segment_ids
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.model.loss import LossSums, chunked_loss
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.optimize import Hypers, Optimizer
from jaxstab.reparam import METHODS, Method, Reparameterization, compose, linen_outputs, reparameterize
from jaxstab.table import Table
from jaxstab.train.config import Config
from jaxstab.train.probe import probe

PROBE_ROWS = 4  # sequences that go through the reference attention
MOST_PARTS = 8  # micro-batches whose gradients are compared

Seen = dict[str, Array]  # maxima over a batch, {"max_attention_logit": [L, H]}; empty where nothing asks for them


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: number of updates done, int32.
      raw: stored parameters, float32.
      reparam: untrained state of the reparameterization, float32.
      clip, optimizer: states of the optax transformations.
      guard: what decides whether a step is taken. Once it has halted, steps change nothing until the host has answered.
    """

    step: Int[Array, ""]
    raw: Any
    reparam: Any
    clip: Any
    optimizer: Any
    guard: stability.Guard


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's functions and shapes. Building one allocates nothing, so that a large run is described on a laptop.

    Attributes:
      table: rows of the effective weights; `reparam.table` has those of what is stored.
      shardings: a `TrainState` of shardings.
      init: seed -> TrainState.
      prepare: (state, tokens [B, T+1]) -> state, what a method asks for between `init` and the first step.
      step: (state, tokens [B, T+1], hypers) -> (state, (scalars, arrays)); donates the state.
      measure: (state, tokens [B, T+1]) -> (scalars, arrays), the full measurements, of the state before a step.
      merge: state -> effective weights.
      evaluate: (weights, tokens [B, T+1], valid [B]) -> LossSums.
    """

    config: Config
    mesh: Mesh
    model: Transformer
    table: Table
    reparam: Reparameterization
    optimizer: Optimizer
    abstract: TrainState
    shardings: Any
    init: Callable[[Any], TrainState]
    prepare: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, Any]]
    measure: Callable[..., tuple[dict[str, Array], dict[str, Array]]]
    merge: Callable[[TrainState], Any]
    evaluate: Callable[..., LossSums]

    @property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, to restore a checkpoint into."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.abstract,
            self.shardings,
        )


def build(config: Config, end: int | None = None, mesh: Mesh | None = None) -> Program:
    """Builds the program of a run.

    Args:
      config: a config whose vocabulary is resolved.
      end: the tokenizer's end-of-document id, needed by `model.mask_documents`.
      mesh: overrides the config's mesh over this machine's devices.
    """
    mesh = scale.make_mesh(config.mesh) if mesh is None else mesh
    config.check_devices(mesh.shape["replica"] * mesh.shape["fsdp"])
    platform = mesh.devices.flat[0].platform
    if config.model.attention == "cudnn" and platform != "gpu":
        raise ConfigError(f"model.attention=cudnn needs an NVIDIA GPU, not a {platform}; xla runs everywhere")
    clips_logits = config.optimizer.projection.method == "qk_clip"
    model = Transformer(config.model, see=("max_attention_logit",) if clips_logits else ())
    table, methods, reparam = reparameterized(config)
    if clips_logits and (config.model.qk_norm or not all(method.linear for method in methods)):
        raise ConfigError(
            "optimizer.projection.method=qk_clip scales stored queries and keys, which changes no logit under "
            "model.qk_norm or a reparameterization that divides a norm out; leave one of them out"
        )
    optimizer = optimize.build(config.optimizer, reparam.table, config.train.steps, table)

    def init(seed: Any) -> TrainState:
        key = jax.random.key(seed)
        raw, state = reparam.init(initialize.draw(key, table), jax.random.fold_in(key, 1))
        clip, rule = optimizer.clip.init(raw), optimizer.update.init(raw)
        return TrainState(jnp.zeros((), jnp.int32), raw, state, clip, rule, stability.start())

    def prepare(state: TrainState, tokens_BS: Int[Array, "B T+1"]) -> TrainState:
        outputs = linen_outputs(model, tokens_BS[:: config.train.accumulation, :-1])
        for phase in filter(None, (method.prepare for method in methods)):
            raw = phase(reparam, state.raw, state.reparam, outputs)
            state = state._replace(raw=jax.device_put(raw, shardings.raw))
        return state

    abstract = jax.eval_shape(init, 0)
    shardings = _state_shardings(abstract, reparam.table, optimizer, mesh)
    whole, rows = scale.replicated(mesh), scale.batch_sharding(mesh)
    losses = functools.partial(loss_sums, model, end, config)
    weight_shardings = scale.shardings(table, mesh)
    step = functools.partial(train_step, config, table, reparam, optimizer, losses, weight_shardings)
    on_mesh = functools.partial(_on_mesh, mesh)
    return Program(
        config=config,
        mesh=mesh,
        model=model,
        table=table,
        reparam=reparam,
        optimizer=optimizer,
        abstract=abstract,
        shardings=shardings,
        init=jax.jit(on_mesh(init), out_shardings=shardings),
        prepare=on_mesh(prepare),
        step=jax.jit(
            on_mesh(step),
            in_shardings=(shardings, rows, whole),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        ),
        measure=jax.jit(
            on_mesh(functools.partial(measure, config, end, table, reparam, model, losses, weight_shardings)),
            in_shardings=(shardings, rows),
            out_shardings=whole,
        ),
        merge=jax.jit(on_mesh(lambda state: reparam.merge(state.raw, state.reparam))),
        evaluate=jax.jit(
            on_mesh(lambda weights, tokens, valid: losses(weights, tokens, valid)[1][0]), out_shardings=whole
        ),
    )


def reparameterized(config: Config) -> tuple[Table, tuple[Method, ...], Reparameterization]:
    """The table of the effective weights, the chosen methods, and these bound to it."""
    table, methods = effective_table(config), compose(config.reparam, METHODS)
    return table, methods, reparameterize(table, *methods)


def effective_table(config: Config) -> Table:
    """The table of the effective weights, with their initial scales."""
    backbone = build_method(config.init, initialize.SCALES)
    embedding = build_method(config.model.embedding, EMBEDDINGS)
    return initialize.scaled(read_table(config.model), backbone, embedding=embedding.multiplier)


def _on_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Traces `function` where the logical axes of activations mean those of the mesh."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(scale.RULES):
            return function(*arguments)

    return traced


def _state_shardings(abstract: TrainState, raw_table: Table, optimizer: Optimizer, mesh: Mesh) -> Any:
    """Optimizer moments lie as their parameters do; everything small is on every device."""
    raw: Any = scale.shardings(raw_table, mesh)
    whole: Any = scale.replicated(mesh)
    return TrainState(
        step=whole,
        raw=raw,
        reparam=jax.tree.map(lambda _: whole, abstract.reparam),
        clip=optimize.state_shardings(optimizer.clip, abstract.clip, raw, whole),
        optimizer=optimize.state_shardings(optimizer.update, abstract.optimizer, raw, whole),
        guard=jax.tree.map(lambda _: whole, abstract.guard),
    )


def _segments(config: Config, end: int | None, tokens_BT: Int[Array, "B T"]) -> Int[Array, "B T"] | None:
    """Document numbers, where attention stays inside documents."""
    if not config.model.mask_documents:
        return None
    assert end is not None, "masking documents needs the tokenizer's end-of-document id"
    return segment_ids(tokens_BT, end)


def _micro_batches(tokens_BS: Int[Array, "B T+1"], count: int) -> Int[Array, "A B/A T+1"]:
    """Micro-batch a takes the rows a, a + A, ...: those of every device, so that none is moved."""
    return tokens_BS.reshape(-1, count, tokens_BS.shape[-1]).swapaxes(0, 1)


def loss_sums(
    model: Transformer,
    end: int | None,
    config: Config,
    weights: Any,
    tokens_BS: Int[Array, "B T+1"],
    valid_B: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], tuple[LossSums, Seen]]:
    """The loss of a batch summed over its targets, and what was seen on the way.

    Rows that aren't `valid_B` are padding and don't count.
    """
    inputs_BT, targets_BT = tokens_BS[:, :-1], tokens_BS[:, 1:]
    segments_BT = _segments(config, end, inputs_BT)
    mask_BT = jnp.broadcast_to(True if valid_B is None else valid_B[:, None], targets_BT.shape)
    hidden_BTD, sown = model.apply(
        {"params": weights}, inputs_BT, segments_BT, method="hidden", mutable=["intermediates"]
    )
    seen: Seen = {}
    if "max_attention_logit" in model.see:
        (seen["max_attention_logit"],) = sown["intermediates"]["layers"]["self_attn"]["max_attention_logit"]
    loss, sums = chunked_loss(
        hidden_BTD,
        weights["lm_head"]["kernel"],
        targets_BT,
        mask_BT,
        z_loss=config.train.z_loss,
        chunk=config.train.loss_chunk,
        softcap=config.model.logits_softcap,
    )
    return loss, (sums, seen)


def train_step(
    config: Config,
    table: Table,
    reparam: Reparameterization,
    optimizer: Optimizer,
    losses: Callable[..., Any],
    weight_shardings: Any,
    state: TrainState,
    tokens_BS: Int[Array, "B T+1"],
    hypers: Hypers,
) -> tuple[TrainState, tuple[dict[str, Array], dict[str, Array]]]:
    """One update. The last three arguments are traced; the rest is the run's.

    Returns:
      The next state, and (scalars, {measurement: vector over layers}).
    """
    weights, pullback, reparam_state = jax.vjp(
        lambda raw: reparam.effective(raw, state.reparam), state.raw, has_aux=True
    )
    gradients, sums, seen = accumulated_gradients(
        losses, weights, tokens_BS, config.train.accumulation, weight_shardings
    )
    (raw_gradients,) = pullback(gradients)
    norm = stability.global_norm(reparam.table, raw_gradients)
    norm_effective = stability.global_norm(table, gradients)
    if config.optimizer.clip_on == "effective":
        clipped, clip = optimizer.clip.update(_at_most(hypers.max_norm, gradients, norm_effective), state.clip)
        (seen_by_rule,) = pullback(clipped)
        was_clipped = stability.global_norm(table, clipped) < 0.9999 * norm_effective
    else:
        clipped, clip = optimizer.clip.update(_at_most(hypers.max_norm, raw_gradients, norm), state.clip)
        seen_by_rule = clipped
        was_clipped = stability.global_norm(reparam.table, clipped) < 0.9999 * norm
    updates, rule = optimizer.update.update(seen_by_rule, state.optimizer, state.raw, hypers=hypers)

    loss, update_norm = sums.cross_entropy / sums.targets, stability.global_norm(reparam.table, updates)
    seen_Q = jnp.stack([loss, norm, update_norm])
    finite = jnp.isfinite(seen_Q).all() & jnp.isfinite(norm_effective)
    guard, verdict = stability.judge(config.stability, state.guard, seen_Q, finite)
    stored = optimizer.project(optax.apply_updates(state.raw, updates), seen)
    new = TrainState(state.step + 1, stored, reparam_state, clip, rule, guard)
    kept = jax.tree.map(functools.partial(jnp.where, verdict.taken), new, state._replace(guard=guard))
    scalars: dict[str, Any] = {
        "train/loss": loss,
        "train/z_loss": config.train.z_loss * sums.z_loss / sums.targets,
        "train/log_z": sums.log_z / sums.targets,
        "train/grad_norm": norm,
        "train/grad_norm_effective": norm_effective,
        "train/update_norm": update_norm,
        "train/clipped": was_clipped,
        "train/learning_rate": hypers.learning_rate * optimizer.schedule(state.step),
        "train/finite": verdict.finite,
        "train/spike": verdict.spike,
        "train/skipped": ~verdict.taken,
        "train/halted": guard.halted,
    }
    scalars |= stability.told(state.guard, seen_Q)
    scalars = {name: value.astype(jnp.promote_types(value.dtype, jnp.float32)) for name, value in scalars.items()}
    if config.stability.measure == "off":
        return kept, (scalars, {})
    measured = stability.light(
        table,
        reparam.table,
        raw=state.raw,
        weights=weights,
        raw_gradients=raw_gradients,
        gradients=gradients,
        seen_by_rule=seen_by_rule,
        updates=updates,
        new_weights=None if config.reparam.method == "identity" else reparam.effective(stored, reparam_state)[0],
        eps=config.optimizer.eps,
    )
    found, arrays = _apart(measured)
    return kept, (scalars | found, arrays)


def _apart(measured: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Scalars, and vectors."""
    scalars = {name: value for name, value in measured.items() if not value.ndim}
    return scalars, {name: value for name, value in measured.items() if value.ndim}


def measure(
    config: Config,
    end: int | None,
    table: Table,
    reparam: Reparameterization,
    model: Transformer,
    losses: Callable[..., Any],
    weight_shardings: Any,
    state: TrainState,
    tokens_BS: Int[Array, "B T+1"],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The full measurements. The last two arguments are traced; the rest is the run's."""
    weights = reparam.merge(state.raw, state.reparam)
    probed_BT = tokens_BS[:PROBE_ROWS, :-1]
    measured = stability.weight_statistics(table, weights)
    measured |= probe(model, weights, probed_BT, _segments(config, end, probed_BT))
    parts = next((parts for parts in range(min(MOST_PARTS, len(tokens_BS)), 1, -1) if len(tokens_BS) % parts == 0), 1)
    if parts > 1:

        def gradient(tokens: Array) -> Any:
            return accumulated_gradients(losses, weights, tokens, 1, weight_shardings)[0]

        micro_batches = _micro_batches(tokens_BS, parts)
        measured |= stability.gradient_statistics(table, gradient, micro_batches, len(tokens_BS) // parts)
    return _apart(measured)


def _at_most(max_norm: ArrayLike | None, gradients: Any, norm: Float[Array, ""]) -> Any:
    """Scales gradients of that norm down to `max_norm`, which in a run is inf but for a while after a roll-back."""
    if max_norm is None:
        return gradients
    factor = jnp.where(norm > max_norm, max_norm / norm, 1.0)
    return jax.tree.map(lambda gradient: factor * gradient, gradients)


def accumulated_gradients(
    losses: Callable[..., Any],
    weights: Any,
    tokens_BS: Int[Array, "B T+1"],
    accumulation: int,
    weight_shardings: Any,
) -> tuple[Any, LossSums, Seen]:
    """The gradient of the mean loss by the effective weights, in float32, the sums behind it and what was seen.

    Sums over micro-batches are divided once by the number of targets, so that it is the large batch's gradient.
    """
    one = jax.grad(losses, has_aux=True)

    def pinned(gradients: Any) -> Any:
        return jax.tree.map(jax.lax.with_sharding_constraint, gradients, weight_shardings)

    def micro(total: Any, tokens: Array) -> tuple[Any, None]:
        gradients, (sums, seen) = one(weights, tokens)
        added = jax.tree.map(jnp.add, total[:2], (pinned(gradients), sums))
        return (*added, jax.tree.map(jnp.maximum, total[2], seen)), None

    if accumulation == 1:
        gradients, (sums, seen) = one(weights, tokens_BS)
    else:
        tokens_ABS = _micro_batches(tokens_BS, accumulation)
        gradients, (sums, seen) = jax.eval_shape(one, weights, tokens_ABS[0])
        zero = jax.tree.map(jnp.zeros_like, (gradients, sums))
        lowest = jax.tree.map(lambda x: jnp.full(x.shape, -jnp.inf, x.dtype), seen)
        (gradients, sums, seen), _ = jax.lax.scan(micro, (*zero, lowest), tokens_ABS)
    return jax.tree.map(lambda gradient: gradient / sums.targets, pinned(gradients)), sums, seen
