"""The program of a run: its functions, jitted with the shardings of its mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jaxstab import scale
from jaxstab.model.loss import LossSums
from jaxstab.table import Weights
from jaxstab.train import instruments, measure, objective, step
from jaxstab.train.config import Config
from jaxstab.train.packed import Measurements, Packed, pack
from jaxstab.train.setup import Setup, set_up
from jaxstab.train.state import TrainState, init_state, state_shardings


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's functions and shapes. Building one allocates nothing, so that a large run is described on a laptop.

    Attributes:
      setup: what they work with.
      abstract_state: shapes, dtypes and shardings of the state, to restore a checkpoint into.
      init: seed -> TrainState.
      prepare: (state, tokens [B, T+1]) -> state, what a method asks for between `init` and the first step.
      step: (state, tokens [B, T+1], hypers) -> (state, its measurements, packed); donates the state.
      measure: (state, tokens [B, T+1], hypers) -> (scalars, vectors), the full measurements, of the state before a
        step and of what it is about to do.
      merge: state -> effective weights.
      evaluate: (weights, tokens [B, T+1], valid [B]) -> LossSums.
    """

    setup: Setup
    abstract_state: TrainState
    init: Callable[[Any], TrainState]
    prepare: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, Packed]]
    measure: Callable[..., Measurements]
    merge: Callable[[TrainState], Weights]
    evaluate: Callable[..., LossSums]


def build(config: Config, end: int | None = None, mesh: Mesh | None = None) -> Program:
    """Builds the program of a run; see `set_up`."""
    setup = set_up(config, end, mesh)
    instruments.check(setup)
    abstract = jax.eval_shape(functools.partial(init_state, setup), 0)
    shardings = state_shardings(setup, abstract)
    whole, rows = scale.replicated(setup.mesh), scale.batch_sharding(setup.mesh)

    def jitted(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return jax.jit(scale.on_mesh(setup.mesh, functools.partial(function, setup)), **options)

    return Program(
        setup=setup,
        abstract_state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
        ),
        init=jitted(init_state, out_shardings=shardings),
        prepare=scale.on_mesh(setup.mesh, functools.partial(prepare, setup, shardings.raw)),
        step=jitted(
            packed_step,
            in_shardings=(shardings, rows, whole),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        ),
        measure=jitted(measure.measure, in_shardings=(shardings, rows, whole), out_shardings=whole),
        merge=jitted(lambda setup, state: setup.reparam.merge(state.raw, state.reparam)),
        evaluate=jitted(objective.evaluation_sums, out_shardings=whole),
    )


def packed_step(setup: Setup, *arguments: Any) -> tuple[TrainState, Packed]:
    """`train_step`, with its measurements as one array."""
    state, metrics = step.train_step(setup, *arguments)
    return state, pack(*metrics)


def prepare(setup: Setup, raw_shardings: Any, state: TrainState, tokens_BS: Int[Array, "B T+1"]) -> TrainState:
    """The phases that methods ask for between `init` and the first step, on the rows of one micro-batch."""
    rows_BT = tokens_BS[:: setup.config.train.accumulation, :-1]
    for phase in filter(None, (method.prepare for method in setup.methods)):
        raw = phase(
            setup.reparam, state.raw, state.reparam, functools.partial(objective.output_moments, setup, rows_BT)
        )
        state = state._replace(raw=jax.device_put(raw, raw_shardings))
    return state
