"""Measurements come to the host as they were, in one array."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.train.packed import pack, unpack


def test_what_is_unpacked_is_what_was_packed():
    random = np.random.default_rng(0)
    scalars = {"train/loss": np.float32(np.nan), "train/halted": np.float32(1)}
    arrays = {"a": random.normal(size=3).astype(np.float32), "b": random.normal(size=(2, 5)).astype(np.float32)}
    more = {"z": np.float32(random.normal())}
    packed = pack(*(jax.tree.map(jnp.asarray, each) for each in (scalars, arrays, more, {})))
    assert packed.values.shape == (2 + 3 + 10 + 1,)
    unpacked_scalars, unpacked_arrays = unpack(packed)
    assert unpacked_scalars.keys() == (scalars | more).keys() and unpacked_arrays.keys() == arrays.keys()
    assert all(type(value) is float for value in unpacked_scalars.values())
    for name, value in (scalars | more).items():
        np.testing.assert_array_equal(np.float32(unpacked_scalars[name]), value)
    for name, value in arrays.items():
        np.testing.assert_array_equal(unpacked_arrays[name], value, strict=True)
