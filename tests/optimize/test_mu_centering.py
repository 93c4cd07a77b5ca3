"""The output embeddings have a mean of zero after every update, and no probability has changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.config import ConfigError
from jaxstab.optimize.mu_centering import mu_centering
from jaxstab.table import Row

TABLE = {
    "head": {"weight": Row("head/weight", "lm_head", (4, 7), (None, None), False)},
    "up": Row("up", "up_proj", (2, 4, 6), (None,) * 3, True),
}
RNG = np.random.default_rng(0)
RAW = jax.tree.map(lambda row: jnp.asarray(RNG.standard_normal(row.shape), jnp.float32), TABLE)


def test_the_mean_goes_and_no_probability_changes():
    raw = mu_centering().project(TABLE, RAW, {})
    before, after = (np.float64(each["head"]["weight"]) for each in (RAW, raw))
    np.testing.assert_allclose(after, before - before.mean(1, keepdims=True), atol=1e-6)
    hidden = RNG.standard_normal((5, 4))
    probabilities = [jax.nn.softmax(hidden @ each) for each in (before, after)]
    np.testing.assert_allclose(*probabilities, rtol=1e-5)
    assert raw["up"] is RAW["up"]


def test_a_tied_head_is_refused():
    with pytest.raises(ConfigError, match="one stored matrix for lm_head, not 0"):
        mu_centering().project({"up": TABLE["up"]}, {"up": RAW["up"]}, {})
