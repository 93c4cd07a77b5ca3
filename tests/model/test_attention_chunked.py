"""Attention in chunks of queries, against the attention whose logits are in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.model.attention import fused_attention, reference_attention
from jaxstab.model.attention_chunked import _chunks


def inputs(length: int, kv_heads: int = 4, dtype: str = "float32") -> tuple[jax.Array, ...]:
    shapes = (2, length, 4, 16), (2, length, kv_heads, 16), (2, length, kv_heads, 16)
    return tuple(jax.random.normal(jax.random.key(seed), shape).astype(dtype) for seed, shape in enumerate(shapes))


def value_and_gradients(attend, arrays):
    out, pullback = jax.vjp(attend, *arrays)
    return out, *pullback(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


# one chunk, chunks that the length fills, a shorter last one, and as many as there may be
@pytest.mark.parametrize("length", [40, 128, 150, 700])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradients_are_those_of_the_reference(length, kv_heads, masked):
    arrays = inputs(length, kv_heads)
    segments = jnp.arange(length)[None].repeat(2, 0) // 33 if masked else None
    chunked = value_and_gradients(lambda q, k, v: fused_attention(q, k, v, segments, "chunked"), arrays)
    reference = value_and_gradients(lambda q, k, v: reference_attention(q, k, v, segments)[0], arrays)
    for one, other in zip(chunked, reference, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-4)


def test_with_sinks_too():
    sinks = jnp.asarray([-1.0, 0.0, 1.0, 3.0])
    chunked = value_and_gradients(
        lambda q, k, v, s: fused_attention(q, k, v, None, "chunked", s), (*inputs(150), sinks)
    )
    reference = value_and_gradients(
        lambda q, k, v, s: reference_attention(q, k, v, None, 0.0, s)[0], (*inputs(150), sinks)
    )
    for one, other in zip(chunked, reference, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-4)


def test_bfloat16_is_as_near_to_float32_as_xla_s_attention():
    exact = value_and_gradients(lambda q, k, v: reference_attention(q, k, v, None)[0], inputs(150))
    errors = {
        kernel: [
            float(jnp.linalg.norm(one.astype("float32") - other) / jnp.linalg.norm(other))
            for one, other in zip(
                value_and_gradients(
                    lambda q, k, v: fused_attention(q, k, v, None, kernel),  # noqa: B023
                    inputs(150, dtype="bfloat16"),
                ),
                exact,
                strict=True,
            )
        ]
        for kernel in ("chunked", "xla")
    }
    assert all(one < 1.2 * other for one, other in zip(errors["chunked"], errors["xla"], strict=True)), errors


def test_no_array_of_all_queries_and_keys_is_kept_for_the_backward_pass():
    length = 512
    _, pullback = jax.vjp(lambda q, k, v: fused_attention(q, k, v, None, "chunked"), *inputs(length))
    sizes = [leaf.size for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "size")]
    assert sizes and max(sizes) < length * length


@pytest.mark.parametrize("length", [1, 64, 65, 512, 2048, 5000])
def test_chunks_cover_the_queries_in_at_most_eight(length):
    chunks = list(_chunks(length))
    assert [position for chunk in chunks for position in range(chunk.start, chunk.stop)] == list(range(length))
    assert len(chunks) <= 8
