"""What is measured of a batch before the first step: over all rows of a micro-batch, each document by itself."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxstab.train.config import default_config, resolve
from jaxstab.train.objective import output_moments
from jaxstab.train.setup import set_up

END = 3


def setup_of(**model):
    values = default_config()
    values.model.update(width=16, layers=2, heads=2, vocabulary=31, max_length=12, remat="none", bias=True, **model)
    values.data.length = 12
    values.train.update(batch_size=4, steps=10)
    values.optimizer.warmup = 2
    return set_up(resolve(values), END)


def weights_of(setup):
    dice = np.random.default_rng(0)
    return jax.tree.map(lambda row: jnp.asarray(dice.normal(size=row.shape), jnp.float32), setup.table)


def test_moments_of_outputs_are_those_of_all_rows_and_of_masked_documents():
    """Row by row they come to what NumPy finds over everything that Flax captures, with the documents' segments."""
    setup = setup_of(mask_documents=True)
    weights, tokens = weights_of(setup), np.random.default_rng(1).integers(4, 31, (4, 12))
    tokens[:, 5] = END
    segments = np.repeat([[0] * 6 + [1] * 6], 4, axis=0)
    captured = setup.model.apply(
        {"params": weights}, tokens, segments, capture_intermediates=True, mutable=["intermediates"]
    )[1]
    outputs = flatten_dict(captured["intermediates"], sep="/")
    moments = jax.jit(lambda weights: output_moments(setup, jnp.asarray(tokens), weights))(weights)
    for name in ("embed_tokens", "layers/self_attn/o_proj", "layers/mlp/down_proj", "lm_head"):
        output = np.float64(outputs[f"{name}/__call__"][0])
        axes = (1, 2) if name.startswith("layers") else (0, 1)
        unit = moments[f"{name}/{'embedding' if 'embed' in name else 'kernel'}"]
        np.testing.assert_allclose(unit.mean, output.mean(axes), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(unit.variance, output.var(axes), rtol=1e-3)
    unmasked = jax.jit(lambda weights: output_moments(setup_of(), jnp.asarray(tokens), weights))(weights)
    o_proj = "layers/self_attn/o_proj/kernel"
    assert np.abs(moments[o_proj].variance / unmasked[o_proj].variance - 1).max() > 0.01
