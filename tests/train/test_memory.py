"""Temporaries of compiled programs: no pass over a batch needs more than the step; the guard keeps no second state."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxstab.table import count
from jaxstab.train.config import default_config, resolve
from jaxstab.train.program import build
from jaxstab.train.step_io import hypers


@functools.cache
def program_of(width, length, batch_size, accumulation, vocabulary=512, measured="off", method="identity", gate="norm"):
    values = default_config()
    values.model.update(width=width, layers=2, heads=2, vocabulary=vocabulary, max_length=length)
    values.data.length = length
    values.train.update(batch_size=batch_size, accumulation=accumulation, loss_chunk=16, steps=10)
    values.optimizer.warmup = 2
    values.stability.measure = measured
    values.reparam.method, values.reparam.weight_norm.gate = method, gate
    return build(resolve(values))


def temporaries(program, name):
    train = program.setup.config.train
    tokens = jax.ShapeDtypeStruct((train.batch_size, program.setup.config.data.length + 1), jnp.int32)
    state = program.abstract_state
    weights, valid = jax.eval_shape(program.merge, state), jax.ShapeDtypeStruct(tokens.shape[:1], bool)
    arguments = {
        "step": (state, tokens, hypers(program)),
        "measure": (state, tokens, hypers(program)),
        "evaluate": (weights, tokens, valid),
    }
    lowered = getattr(program, name).lower(*arguments[name])
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("name", "more_gradients"), [("evaluate", 0), ("measure", 2)])
def test_no_pass_over_a_batch_needs_more_memory_than_the_step(name, more_gradients):
    """The full measurements hold the mean gradient of the parts so far, before and after a part, beside their own."""
    program = program_of(64, 256, 64, 32, measured="full")
    more = 4 * more_gradients * count(program.setup.table)
    assert temporaries(program, name) <= temporaries(program, "step") + more


@pytest.mark.parametrize(("method", "most"), [("identity", 11), ("wesar", 15)])
def test_the_guard_keeps_no_second_state(method, most):
    """Gradients and updates take 8 bytes per parameter, effective weights and their gradients as much again."""
    program = program_of(256, 8, 1, 1, vocabulary=64, method=method)
    assert temporaries(program, "step") <= most * count(program.setup.stored_table)


def test_prepare_needs_no_more_memory_than_the_step():
    program = program_of(64, 256, 16, 2, method="weight_norm", gate="data")
    tokens = jax.ShapeDtypeStruct((16, 257), jnp.int32)
    needed = jax.jit(program.prepare).lower(program.abstract_state, tokens).compile().memory_analysis()
    assert needed.temp_size_in_bytes <= temporaries(program, "step")
