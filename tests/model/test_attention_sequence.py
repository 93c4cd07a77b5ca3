"""Attention over a split sequence is attention whose logits are in memory: values, gradients, and what devices send."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import scale
from jaxstab.model.attention import fused_attention, reference_attention
from jaxstab.model.attention_sequence import is_split_sequence
from jaxstab.model.loss import chunked_loss
from jaxstab.scale.collectives import collectives

BATCH, LENGTH, HEADS, SIZE = 4, 32, 4, 8


def on_mesh(function, arrays, **sizes):
    """What `function` of arrays [B, T, ...] gives on a mesh, and what its devices send each other."""
    mesh = scale.make_mesh(scale.MeshConfig(**sizes))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("replica", "fsdp"), "sequence"))

    def traced(*arrays):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(scale.RULES):
            return function(*arrays)

    compiled = jax.jit(traced).lower(*jax.device_put(arrays, split)).compile()
    return jax.device_get(compiled(*jax.device_put(arrays, split))), collectives(compiled.as_text())


def inputs(kv_heads, dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(BATCH, LENGTH, count, SIZE) for count in (HEADS, kv_heads, kv_heads, HEADS)]
    arrays = [2 * jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]
    return [*arrays, jnp.cumsum(jax.random.bernoulli(keys[0], 0.1, (BATCH, LENGTH)), axis=1)]


def value_and_gradients(attention):
    def of(q, k, v, weight, segments):
        def total(q, k, v):
            out = attention(q, k, v, segments)
            return jnp.sum((out * weight).astype(jnp.float32)), out

        gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return out, *gradients

    return of


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("sizes", "kv_heads"), [({"sequence": 8}, 4), ({"fsdp": 2, "tensor": 2, "sequence": 2}, 2)])
def test_value_and_gradients_are_those_of_the_reference(sizes, kv_heads, documents):
    def reference(q, k, v, segments):
        return reference_attention(q, k, v, segments if documents else None)[0]

    def split(q, k, v, segments):
        assert is_split_sequence(q, k)
        return fused_attention(q, k, v, segments if documents else None, "chunked")

    arrays = inputs(kv_heads)
    ours, sent = on_mesh(value_and_gradients(split), arrays, **sizes)
    for one, other in zip(ours, jax.jit(value_and_gradients(reference))(*arrays), strict=True):
        assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(other)
    keys = 4 * BATCH * LENGTH * kv_heads * SIZE // (sizes.get("fsdp", 1) * sizes.get("tensor", 1))  # of one device, all
    assert sent["all-gather f32"]["bytes"] <= 4 * keys  # keys and values, forward and backward
    assert set(sent) <= {"all-gather f32", "all-gather s32", "reduce-scatter f32", "all-reduce f32", "all-reduce s32"}


def test_gradients_by_keys_are_float32_sums_over_devices():
    """Where they come from seven devices and more, bfloat16 sums would be off by a percent."""
    arrays = inputs(4, "bfloat16")
    attend = value_and_gradients(lambda q, k, v, segments: fused_attention(q, k, v, None, "chunked"))
    split, sent = on_mesh(attend, arrays, sequence=8)
    whole, _ = on_mesh(attend, arrays)
    for one, other in zip(map(np.float32, split), map(np.float32, whole), strict=True):
        assert np.linalg.norm(one - other) < 4e-3 * np.linalg.norm(other)
    assert not {"reduce-scatter bf16", "all-reduce bf16"} & set(sent)


def test_what_a_mesh_does_not_divide_is_left_to_xla():
    x = jnp.zeros((BATCH, LENGTH + 1, HEADS, SIZE))
    for sizes, length, expected in [
        ({"sequence": 4}, LENGTH, True),
        ({"sequence": 4}, LENGTH + 1, False),
        ({"sequence": 2, "fsdp": 3}, LENGTH, False),
        ({"fsdp": 4}, LENGTH, False),
    ]:
        mesh = scale.make_mesh(scale.MeshConfig(**sizes))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(scale.RULES):
            assert is_split_sequence(x[:, :length], x[:, :length]) == expected


@pytest.mark.parametrize("groups", [(1, 4), (2, 2), (4, 1), (3, 5)])
def test_the_loss_in_groups_of_rows_and_positions_is_that_of_the_whole(groups):
    keys = jax.random.split(jax.random.key(1), 3)
    hidden, lm_head = jax.random.normal(keys[0], (4, 16, 8)), jax.random.normal(keys[1], (8, 11))
    targets = jax.random.randint(keys[2], (4, 16), 0, 11)

    def loss(hidden, lm_head, groups):
        return chunked_loss(hidden, lm_head, targets, targets > 2, z_loss=1e-2, chunk=3, groups=groups)[0]

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    for one, other in zip(*(jax.tree.leaves(grad(hidden, lm_head, each)) for each in (groups, (1, 1))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
