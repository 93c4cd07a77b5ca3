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
from jaxtyping import Array, Bool, Float, Int

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

Seen = dict[str, Array]  # maxima over a batch, {"max_attention_logit": [L, H]}; empty where nothing asks for them


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: number of updates done, int32.
      raw: stored parameters, float32.
      reparam: untrained state of the reparameterization, float32.
      clip, optimizer: states of the optax transformations.
      finite: whether every loss, gradient and update so far was. Once False, steps change nothing until the host has
        answered.
    """

    step: Int[Array, ""]
    raw: Any
    reparam: Any
    clip: Any
    optimizer: Any
    finite: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's functions and shapes. Building one allocates nothing, so that a large run is described on a laptop.

    Attributes:
      table: rows of the effective weights; `reparam.table` has those of what is stored.
      shardings: a `TrainState` of shardings.
      init: seed -> TrainState.
      prepare: (state, tokens [B, T+1]) -> state, what a method asks for between `init` and the first step.
      step: (state, tokens [B, T+1], hypers) -> (state, (scalars, arrays)); donates the state.
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
        return TrainState(jnp.zeros((), jnp.int32), raw, state, clip, rule, jnp.ones((), bool))

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
    step = functools.partial(train_step, config, reparam, optimizer, losses, scale.shardings(table, mesh))
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
        finite=whole,
    )


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
    segments_BT = None
    if config.model.mask_documents:
        assert end is not None, "masking documents needs the tokenizer's end-of-document id"
        segments_BT = segment_ids(inputs_BT, end)
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
    norm_effective = optax.tree.norm(gradients)
    clip_effective = config.optimizer.clip_on == "effective"
    clipped, clip = optimizer.clip.update(gradients, state.clip) if clip_effective else (gradients, state.clip)
    (raw_gradients,) = pullback(clipped)
    norm = optax.tree.norm(pullback(gradients)[0] if clip_effective else raw_gradients)
    if not clip_effective:
        clipped, clip = optimizer.clip.update(raw_gradients, state.clip)
        raw_gradients = clipped
    was_clipped = optax.tree.norm(clipped) < 0.9999 * (norm_effective if clip_effective else norm)
    updates, rule = optimizer.update.update(raw_gradients, state.optimizer, state.raw, hypers=hypers)

    loss = sums.cross_entropy / sums.targets
    judged = jnp.stack([loss, norm, norm_effective, optax.tree.norm(updates)])
    finite = state.finite & jnp.isfinite(judged).all()
    stored = optimizer.project(optax.apply_updates(state.raw, updates), seen)
    new = TrainState(state.step + 1, stored, reparam_state, clip, rule, finite)
    kept = jax.tree.map(functools.partial(jnp.where, finite), new, state._replace(finite=finite))
    scalars = {
        "train/loss": loss,
        "train/z_loss": config.train.z_loss * sums.z_loss / sums.targets,
        "train/log_z": sums.log_z / sums.targets,
        "train/grad_norm": norm,
        "train/grad_norm_effective": norm_effective,
        "train/clipped": was_clipped.astype(jnp.float32),
        "train/learning_rate": hypers.learning_rate * optimizer.schedule(state.step),
        "train/finite": finite.astype(jnp.float32),
    }
    measured = {
        f"stability/update_ratio/{role}": ratio
        for role, ratio in stability.update_ratio(reparam.table, updates, state.raw).items()
    }
    scalars |= {name: value for name, value in measured.items() if not value.ndim}
    return kept, (scalars, {name: value for name, value in measured.items() if value.ndim})


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
        # Micro-batch a takes the rows a, a + A, ...: those of every device, so that none is moved.
        tokens_ABS = tokens_BS.reshape(-1, accumulation, tokens_BS.shape[-1]).swapaxes(0, 1)
        gradients, (sums, seen) = jax.eval_shape(one, weights, tokens_ABS[0])
        zero = jax.tree.map(jnp.zeros_like, (gradients, sums))
        lowest = jax.tree.map(lambda x: jnp.full(x.shape, -jnp.inf, x.dtype), seen)
        (gradients, sums, seen), _ = jax.lax.scan(micro, (*zero, lowest), tokens_ABS)
    return jax.tree.map(lambda gradient: gradient / sums.targets, pinned(gradients)), sums, seen
