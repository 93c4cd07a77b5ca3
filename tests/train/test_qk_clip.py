"""QK-clip in a training step: it acts, and is refused where it can't."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.config import ConfigError
from jaxstab.model.transformer import Transformer
from jaxstab.optimize import Hypers
from jaxstab.train.config import default_config, resolve
from jaxstab.train.program import build

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 31, (4, 9)), jnp.int32)
HYPERS = Hypers(jnp.float32(1e-3), jnp.float32(0.0))


def program_of(threshold, **changes):
    values = default_config()
    values.model.update({"width": 8, "layers": 2, "heads": 2, "vocabulary": 31, "max_length": 8, "remat": "none"})
    values.model.update(changes.pop("model", {}))
    values.data.length = 8
    values.train.update({"batch_size": 4, "steps": 20, "accumulation": 2})
    values.optimizer.warmup = 1
    values.optimizer.projection.method = "qk_clip"
    values.optimizer.projection.qk_clip.threshold = threshold
    values.reparam.method = changes.get("reparam", "identity")
    return build(resolve(values))


def largest_logits(program, state):
    model = Transformer(program.setup.config.model, intermediates=("max_attention_logit",))
    _, sown = model.apply({"params": program.merge(state)}, TOKENS[:, :-1], mutable=["intermediates"])
    return np.asarray(sown["intermediates"]["layers"]["self_attn"]["max_attention_logit"][0])


@pytest.mark.parametrize("reparam", ["identity", "wesar"])
def test_heads_above_the_threshold_come_down_to_it_and_others_stay(reparam):
    free = program_of(1e9, reparam=reparam)
    seen = largest_logits(free, free.init(0))
    threshold = float(np.median(seen))
    clipped = program_of(threshold, reparam=reparam)
    after_free, _ = free.step(free.init(0), TOKENS, HYPERS)
    after_clipped, _ = clipped.step(clipped.init(0), TOKENS, HYPERS)
    # The step's logits are those before the update, so that the shrunk ones are right but for one small update.
    expected = largest_logits(free, after_free) * np.minimum(1, threshold / seen)
    first = slice(0, 1)  # deeper blocks see what the first one puts out
    np.testing.assert_allclose(largest_logits(clipped, after_clipped)[first], expected[first], rtol=0.02)
    assert (seen[first] > threshold).any() or (seen > threshold).any()
    q_free, q_clipped = (
        jax.tree.leaves(state.raw["layers"]["self_attn"]["q_proj"])[-1] for state in (after_free, after_clipped)
    )
    assert not np.allclose(q_free, q_clipped)


@pytest.mark.parametrize(
    "changes", [{"reparam": "weight_norm"}, {"reparam": "sigma_reparam"}, {"model": {"qk_norm": True}}]
)
def test_it_is_refused_where_scaling_what_is_stored_changes_no_logit(changes):
    with pytest.raises(ConfigError, match="qk_clip scales stored q_proj and k_proj"):
        program_of(1.0, **changes)
