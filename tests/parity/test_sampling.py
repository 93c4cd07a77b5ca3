"""top_k and top_p leave out the tokens that transformers leaves out."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.evaluate.sampling import truncated

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

LOGITS = 3 * np.random.default_rng(0).standard_normal((20, 50)).astype(np.float32)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (0, 0.3), (5, 1.0), (10, 0.8), (1, 1.0), (60, 0.5)])
def test_the_same_tokens_are_left(top_k, top_p):
    expected = torch.tensor(LOGITS)
    if top_k:
        expected = transformers.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = transformers.TopPLogitsWarper(top_p)(None, expected)
    left = np.isfinite(truncated(jnp.asarray(LOGITS), top_k, top_p))
    np.testing.assert_array_equal(left, np.isfinite(expected.numpy()))
    assert left.any(axis=1).all()
