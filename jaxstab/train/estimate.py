"""What a step costs each device by formula: work, traffic and memory, before anything is compiled.

Rows of the effective weights are the model; a mesh is its sizes. Where the compiler's figures are at hand
(`jaxstab.train.plan`) they take the place of those of memory and traffic; the rest stays by formula.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding
from jaxtyping import Array

from jaxstab import scale
from jaxstab.model.flops import flops_per_token
from jaxstab.scale.roofline import Work
from jaxstab.table import EMBEDDINGS, Effective, Row, Table, rows
from jaxstab.train import objective
from jaxstab.train.config import Config
from jaxstab.train.program import Program
from jaxstab.train.setup import Setup

FLOAT = 4  # bytes of parameters, moments, gradients and of the loss's logits
RECOMPUTING = ("full", "offload")  # of model.remat: a block's backward pass begins with its forward pass


def step_flops(config: Config, table: Table[Effective]) -> dict[str, float]:
    """FLOPs of a whole batch, by the conventions of `model.flops`, and `executed`: those of `causal`, and what is
    computed again: a block's forward pass under remat=full, and attention's logits in its backward pass. Where the
    sequence is split, a query meets every key, so that attention counts as in `full`."""
    per_token = flops_per_token(table, config.data.length)
    attention = per_token["full"] - per_token["6N"]
    if config.mesh.sequence == 1:
        attention /= 2
    blocks = 6.0 * sum(row.size for row in _products(table) if row.stacked)
    forward = (blocks + attention) / 3 if config.model.remat in RECOMPUTING else 0.0
    per_token["executed"] = per_token["6N"] + attention * 7 / 6 + forward
    tokens = config.train.batch_size * config.data.length
    return {name: flops * tokens for name, flops in per_token.items()}


def _products(table: Any) -> list[Row]:
    """The matrices that activations are multiplied with."""
    return [row for row in rows(table) if row.is_matrix and row.role not in EMBEDDINGS]


def work(config: Config, sizes: Mapping[str, int], table: Table[Effective]) -> Work:
    """What a device does in a step.

    Every product reads its operands and writes its result once, forward and twice backward, and once more where it is
    recomputed; the update reads and writes parameters and moments, and reads the gradient, once. Attention's logits
    stay in fast memory.

    Args:
      config: of the run.
      sizes: devices along each axis of the mesh.
      table: of the effective weights.
    """
    passes = 3 + (config.model.remat in RECOMPUTING)
    tokens = _tokens(config, sizes)  # of a micro-batch, on a device
    width = jnp.dtype(config.model.dtype).itemsize
    products = 0.0
    for row in _products(table):
        size_in, size_out = _split(row, sizes, ("tensor",))[-2:]
        products += max(1, row.layers) * (size_in * size_out + tokens * (size_in + size_out))
    update = FLOAT * 7 * sum(math.prod(_split(row, sizes)) for row in rows(table))
    accessed = config.train.accumulation * passes * width * products + update
    flops = step_flops(config, table)["executed"] / math.prod(sizes.values())
    return Work(flops, accessed, sum(sent(config, sizes, table).values()))


def _tokens(config: Config, sizes: Mapping[str, int]) -> float:
    """Tokens of a micro-batch on one device."""
    split = sizes["replica"] * sizes["fsdp"] * sizes["sequence"]
    return config.train.batch_size * config.data.length / config.train.accumulation / split


def _split(row: Row, sizes: Mapping[str, int], axes: tuple[str, ...] = scale.AXES) -> tuple[int, ...]:
    """The shape of what a device holds of a parameter that is split along some axes of the mesh."""
    mesh = AbstractMesh(tuple(sizes[axis] if axis in axes else 1 for axis in scale.AXES), scale.AXES)
    return NamedSharding(mesh, scale.spec(row, mesh)).shard_shape(row.shape)


def sent(config: Config, sizes: Mapping[str, int], table: Table[Effective]) -> dict[str, float]:
    """Bytes that a device sends in a step, by what they are, around rings.

    `weights`: parameters but embeddings are gathered over `fsdp` in the compute dtype, for the forward pass, the
    recomputed one and the backward pass of each micro-batch. `gradients`: float32 sums, scattered over `fsdp` once a
    micro-batch, and added up over `replica` once a step. `activations`: the outputs of both branches of a block, summed
    over `tensor` forward, recomputed, and backward those of their inputs. `keys`: keys and values, gathered over
    `sequence`, and their gradients scattered.
    """
    model = config.model
    width, micro = jnp.dtype(model.dtype).itemsize, config.train.accumulation
    again = model.remat in RECOMPUTING
    matrices = sum(math.prod(_split(row, sizes, ("tensor",))) for row in _products(table))
    owned = sum(math.prod(_split(row, sizes)) for row in rows(table))
    rest = {axis: (size - 1) / size for axis, size in sizes.items()}
    tokens = _tokens(config, sizes)
    keys = 2 * (model.kv_heads or model.heads) * model.head_dim / sizes["tensor"]
    gathered = tokens * sizes["sequence"] * keys * rest["sequence"]
    return {
        "weights": micro * (2 + again) * width * matrices * rest["fsdp"],
        "gradients": FLOAT * (micro * matrices * rest["fsdp"] + 2 * owned * rest["replica"]),
        "activations": micro * (4 + 2 * again) * model.layers * 2 * tokens * model.width * width * rest["tensor"],
        "keys": micro * model.layers * gathered * (width * (2 + again) + FLOAT),
    }


class Footprint(NamedTuple):
    """What a run holds, before it is split over devices.

    Attributes:
      weights: rows of the effective weights.
      stored: rows of the stored parameters.
      moments: bytes of the optimizer's state for each byte of the stored parameters.
      gradients: copies of the gradient that are there at once: two where effective weights aren't what is stored.
      kept: bytes that a sequence's activations take while they wait for the backward pass.
      block: bytes of what is computed again of one block, for a sequence.
    """

    weights: Any
    stored: Any
    moments: float
    gradients: int
    kept: float
    block: float


def footprint(program: Program) -> Footprint:
    """What the run of a program holds."""
    setup, state = program.setup, program.abstract_state
    kept = activation_bytes(setup)
    return Footprint(
        setup.table,
        setup.stored_table,
        moments=_bytes((state.optimizer, state.clip)) / _bytes(state.raw),
        gradients=1 if setup.reparam.constant else 2,
        kept=kept,
        block=(activation_bytes(_without_remat(setup)) - kept) / setup.config.model.layers,
    )


def memory(config: Config, sizes: Mapping[str, int], held: Footprint) -> dict[str, float]:
    """Bytes of one device of a mesh, by what holds them. What of the activations lies along `tensor` counts whole."""
    parameters = FLOAT * sum(math.prod(_split(row, sizes)) for row in rows(held.stored))
    sequences = _tokens(config, sizes) / config.data.length
    positions = sequences * min(config.train.loss_chunk, config.data.length)
    return {
        "parameters": parameters,
        "optimizer": held.moments * parameters,
        "activations": sequences * held.kept * (config.model.remat != "offload"),
        "block": sequences * held.block,
        "gradients": held.gradients * parameters,
        "logits": 2.0 * FLOAT * positions * config.model.vocabulary / sizes["tensor"],
    }


def state_bytes(program: Program) -> dict[str, float]:
    """Bytes that a device holds between steps: the stored parameters, what the optimizer keeps, and the rest."""
    state = program.abstract_state
    return {
        "parameters": _bytes(state.raw, split=True),
        "optimizer": _bytes((state.optimizer, state.clip), split=True),
        "other state": _bytes((state.reparam, state.guard, state.step), split=True),
    }


def _bytes(tree: Any, split: bool = False) -> float:
    """Bytes of the leaves of a tree, or of the parts of them that a device has."""
    leaves = [(leaf.sharding.shard_shape(leaf.shape) if split else leaf.shape, leaf) for leaf in jax.tree.leaves(tree)]
    return sum(math.prod(shape) * leaf.dtype.itemsize for shape, leaf in leaves)


def _without_remat(setup: Setup) -> Setup:
    model = setup.model
    return dataclasses.replace(setup, model=model.clone(config=dataclasses.replace(model.config, remat="none")))


def activation_bytes(setup: Setup) -> float:
    """Bytes of a sequence's activations that wait for the backward pass: what the residuals of two have more than those
    of one."""
    shapes = jax.tree.map(lambda row: jax.ShapeDtypeStruct(row.shape, jnp.float32), setup.table)

    def pullback(weights: Any, tokens: Array) -> Any:
        return jax.vjp(lambda weights: objective.loss_sums(setup, weights, tokens)[0], weights)[1]

    def of_rows(count: int) -> float:
        tokens = jax.ShapeDtypeStruct((count, setup.config.data.length + 1), jnp.int32)
        return _bytes(jax.eval_shape(pullback, shapes, tokens))

    return of_rows(2) - of_rows(1)
