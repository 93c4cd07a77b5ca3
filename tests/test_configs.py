"""Every config file builds and is described, in every combination of its arguments, without allocating a weight."""

import importlib
import itertools

import jax
import pytest

from configs import ladder, recipe
from configs.methods import METHODS
from jaxstab.config import flatten
from jaxstab.train import describe
from jaxstab.train.config import resolve

ARGUMENTS = {
    "wesar": {
        "size": ("130m", "1.3b", "13b"),
        "method": (
            "wesar",
            "small",
            "he",
            "wesar_small",
            "wesar_fixed",
            "weight_norm",
            "sigma_reparam_pre",
            "sigma_reparam_post",
            "residual_scaling_he",
            "residual_scaling_small",
        ),
        "setting": ("rapid", "stable"),
    },
    "spike_no_more": {
        "size": ("350m", "1.7b", "13b"),
        "method": ("vanilla", "embed_detach", "embed_ln", "scaled_embed", "xavier"),
    },
    "tev_mlra": {"layers": ("48", "96", "192"), "model": ("gpt2", "mlra", "sigma_reparam")},
    "yulan_mini": {},
    "small_scale_proxies": {"size": ("10m", "2.4m", "85m", "1.2b", "4.8b"), "qk_norm": ("yes", "no")},
}
CASES = [
    (name, ",".join(f"{key}={value}" for key, value in zip(choices, combination, strict=True)))
    for name, choices in ARGUMENTS.items()
    for combination in itertools.product(*choices.values())
]


@pytest.mark.parametrize(("name", "argument"), CASES, ids=[f"{name}:{argument}" for name, argument in CASES])
def test_every_combination_is_described(name, argument):
    config = resolve(importlib.import_module(f"configs.{name}").get_config(argument))
    before = len(jax.live_arrays())
    rows = describe.describe(config)
    assert len(jax.live_arrays()) == before
    read = config.train.steps * config.train.batch_size * (config.data.length + 1)
    assert read <= config.data.max_tokens <= 1.02 * read, "no more is tokenised than the run reads, but for a margin"
    assert len(rows) > 10 and describe.total(config) > 10**6
    assert all("None" not in cell for row in rows for cell in row)


@pytest.mark.parametrize("rung", ladder.RUNGS)
def test_the_recipe_is_a_rung_of_the_ladder_with_a_method_of_the_comparison(rung):
    values = recipe.get_config(f"rung={rung}")
    assert METHODS["muon"].items() <= flatten(resolve(values)).items()
    values.model.vocabulary = ladder.RUNGS[rung][2]  # the tokenizer's, which is a file that isn't here
    told = f"{describe.total(resolve(values)) / 1e6:.1f}M"
    assert told in ladder.__doc__ or f"{describe.total(resolve(values)) / 1e6:.2f}M" in ladder.__doc__
