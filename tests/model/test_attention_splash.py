"""Splash attention, interpreted on a CPU, against attention whose logits are in memory: values and gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from jaxstab import scale
from jaxstab.model import attention_splash
from jaxstab.model.attention import fused_attention, reference_attention
from jaxstab.train import objective, setup
from jaxstab.train.config import default_config, resolve
from jaxstab.train.program import build
from jaxstab.train.state import init_state


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    make = functools.partial(splash_attention.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha_single_device", make)


def on_mesh(function, **sizes):
    """`function`, jitted where the logical axes mean those of a mesh of devices."""
    mesh = scale.make_mesh(scale.MeshConfig(**sizes))

    @jax.jit
    def traced(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(scale.RULES):
            return function(*arguments)

    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return lambda *arguments: traced(*jax.device_put(arguments, whole))


def inputs(batch, length, heads, kv_heads, size, dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, length, count, size) for count in (heads, kv_heads, kv_heads, heads)]
    return [2 * jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def value_and_gradients(attention, q, k, v, weight, segments):
    def total(q, k, v):
        out = attention(q, k, v, segments)
        return jnp.sum((out * weight).astype(jnp.float32)), out

    gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients


def reference(q, k, v, segments):
    return reference_attention(q, k, v, segments)[0]


def splash(q, k, v, segments):
    assert attention_splash.is_splash_shape(q, k)
    return fused_attention(q, k, v, segments, "splash")


@pytest.mark.parametrize(
    ("length", "kv_heads", "documents", "sizes"),
    [
        (256, 2, False, {}),
        (384, 2, True, {}),  # three blocks
        (128, 1, True, {}),
        (128, 1, False, {"fsdp": 2}),
        (128, 2, True, {"replica": 2, "fsdp": 2, "tensor": 2}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradients_are_those_of_the_reference(length, kv_heads, documents, sizes, dtype):
    batch = inputs(4, length, 2, kv_heads, 16, dtype)
    segments = jnp.cumsum(jax.random.bernoulli(jax.random.key(1), 0.02, (4, length)), axis=1) if documents else None
    found = on_mesh(functools.partial(value_and_gradients, splash), **sizes)(*batch, segments)
    exact = value_and_gradients(reference, *(x.astype(jnp.float32) for x in batch), segments)
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, exact, strict=True):
        assert one.dtype == dtype
        error = jnp.linalg.norm(one.astype(jnp.float32) - other) / jnp.linalg.norm(other)
        assert error < (1e-5 if dtype == "float32" else 1e-2), name


@pytest.mark.parametrize(
    ("shape", "sizes", "is_taken"),
    [
        ((4, 256, 4, 16), {"fsdp": 2, "tensor": 2}, True),
        ((3, 256, 4, 16), {"fsdp": 2}, False),
        ((4, 200, 4, 16), {}, False),
        ((4, 256, 2, 16), {"tensor": 4}, False),
        ((4, 256, 4, 16), {"sequence": 2}, False),
    ],
)
def test_another_shape_goes_in_chunks(shape, sizes, is_taken):
    x = jax.random.normal(jax.random.key(0), shape)

    def attend(x):
        assert attention_splash.is_splash_shape(x, x) == is_taken
        return fused_attention(x, x, x, None, "splash")

    np.testing.assert_allclose(on_mesh(attend, **sizes)(x), reference(x, x, x, None), rtol=1e-4, atol=1e-5)


def test_without_a_mesh_it_goes_in_chunks():
    x = jax.random.normal(jax.random.key(0), (1, 128, 2, 16))
    assert not attention_splash.is_splash_shape(x, x)
    np.testing.assert_allclose(fused_attention(x, x, x, None, "splash"), reference(x, x, x, None), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [{}, {"replica": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_the_gradients_of_a_step_are_the_same(monkeypatch, sizes):
    """Through blocks that are scanned and rematerialised, micro-batches, and a map over replicas."""
    values = default_config()
    values.model.update(width=32, layers=2, heads=4, kv_heads=2, vocabulary=64, max_length=128, mask_documents=True)
    values.data.length = 128
    values.train.update(batch_size=8, accumulation=2, loss_chunk=64)
    values.mesh.update(sizes)
    config = resolve(values)
    tokens = jax.random.randint(jax.random.key(0), (8, 129), 0, 64)

    def gradients(kernel):
        monkeypatch.setattr(setup, "attention_kernel", lambda *_: kernel)
        made = build(config, end=0).setup
        state = init_state(made, 0)
        weights = made.reparam.merge(state.raw, state.reparam)
        mesh = made.mesh
        calls = []
        real = attention_splash.splash_attention
        monkeypatch.setattr("jaxstab.model.attention.splash_attention", lambda *a: calls.append(a) or real(*a))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(scale.RULES):
            found = jax.jit(lambda w, t: objective.mean_gradients(made, w, t, 2))(weights, tokens)
        assert bool(calls) == (kernel == "splash")
        return found

    one, other = gradients("splash"), gradients("xla")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), one, other)
