"""Options together, and one by one: every allowed pair takes a finite step, and no key is ignored.

That a key does what it says is for the tests of its room; here a key that nothing reads fails.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.config import ConfigError, declared
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.model.placements import PLACEMENTS
from jaxstab.optimize import Hypers
from jaxstab.reparam import METHODS
from jaxstab.table import rows
from jaxstab.train.config import NOT_TRAINING, Config, default_config, resolve
from jaxstab.train.step import build

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 31, (4, 9)), jnp.int32)
HYPERS = Hypers(jnp.float32(1e-2), jnp.float32(0.1))

ATTENTION = {
    "plain": {},
    "grouped": {"model.kv_heads": 1},
    "qk_norm": {"model.qk_norm": True},
    "softcap": {"model.attention_softcap": 5.0},
    "masked": {"model.mask_documents": True},
}
DIMENSIONS = {
    "reparam.method": list(METHODS),
    "model.norm_placement.method": list(PLACEMENTS),
    "model.embedding.method": list(EMBEDDINGS),
    "attention": list(ATTENTION),
}


def config_of(changes):
    values = default_config()
    values.model.update({"width": 8, "layers": 2, "heads": 2, "vocabulary": 31, "max_length": 8, "remat": "none"})
    values.data.length = 8
    values.train.update({"batch_size": 4, "steps": 20, "loss_chunk": 8})
    values.optimizer.warmup = 2
    values.stability.measure = "off"  # faster to compile; its own tests are elsewhere
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values
        for name in path:
            section = section[name]
        section[last] = value
    return resolve(values)


def covering(dimensions):
    """Few combinations in which every pair of values of two dimensions occurs, found greedily."""
    names = list(dimensions)
    pairs = {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(names, 2)
        for x in dimensions[a]
        for y in dimensions[b]
    }
    everything = [dict(zip(names, values, strict=True)) for values in itertools.product(*dimensions.values())]

    def gain(combination):
        return sum(frozenset(pair) in pairs for pair in itertools.combinations(combination.items(), 2))

    while pairs:
        best = max(everything, key=gain)
        pairs -= {frozenset(pair) for pair in itertools.combinations(best.items(), 2)}
        yield best


@pytest.mark.parametrize(
    "combination", list(covering(DIMENSIONS)), ids=lambda combination: "-".join(combination.values())
)
def test_every_pair_takes_finite_steps_and_merges_to_the_model_s_weights(combination):
    changes = {**combination, **ATTENTION[combination["attention"]]}
    del changes["attention"]
    program = build(config_of(changes), end=3)
    state = program.init(0)
    for _ in range(2):
        state, (scalars, _) = program.step(state, TOKENS, HYPERS)
    assert scalars["train/finite"] == 1
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.raw))
    merged = jax.eval_shape(program.merge, state)
    assert jax.tree.map(lambda leaf: leaf.shape, merged) == jax.tree.map(lambda row: row.shape, program.table)


def signature(changes):
    """What is stored, and the programs that start and train it, constants included: an ignored key leaves no trace."""
    program = build(config_of(changes), end=3)
    programs = [jax.make_jaxpr(program.init)(0), jax.make_jaxpr(program.step)(program.abstract, TOKENS, HYPERS)]
    table = rows(program.table) + rows(program.reparam.table)
    hypers = program.config.optimizer.learning_rate, program.config.optimizer.weight_decay, program.config.train.seed
    return table, re.sub(r"0x[0-9a-f]+", "", "".join(map(str, programs))), hypers


# What has to be set for a key to have an effect, and values where the rule below makes none that fits.
CONTEXT = {
    "optimizer.clip_on": {"reparam.method": "wesar", "optimizer.clip.global_norm.max_norm": 0.01},
    "optimizer.decay_gates": {"reparam.method": "wesar"},
    "reparam.weight_norm.constant": {"reparam.weight_norm.gate": "constant"},
    "optimizer.clip.method": {"optimizer.clip.global_norm.max_norm": 0.01},
    "optimizer.clip.global_norm.max_norm": {"optimizer.clip.global_norm.max_norm": 0.01},
    "model.norm_eps": {"model.norm_eps": 0.1},
}
VALUES = {
    "optimizer.rule.adamw.b1": [0.5],
    "optimizer.rule.adamw.b2": [0.5],
    "optimizer.rule.stable_adamw.b1": [0.5],
    "optimizer.rule.stable_adamw.b2": [0.5],
    "model.heads": [4],
    "model.kv_heads": [1],
    "model.layers": [3],
    "model.vocabulary": [37],
    "model.mlp_width": [12],
    "optimizer.warmup": [5],
    "train.steps": [10],
    "train.batch_size": [],
}
EQUIVALENT = {
    "model.max_length": "a limit, where positions are rotary",
    "model.remat": "recomputes the same",
    "model.attention": "another kernel for the same, on GPUs alone",
    "model.embedding.method=scaled": "He's standard deviation is 1/sqrt(d), so that unit is scaled",
    "init.method=megatron": "Small by another name",
    "train.accumulation": "the same batch in parts",
    "train.loss_chunk": "the same loss in parts",
    "train.batch_size": "the batch is given here",
    "train.extend": "where the run ends",
    "train.length_warmup": "cuts batches before the step (tests/train/test_lengths.py)",
    "train.warmup_lengths": "cuts batches before the step (tests/train/test_lengths.py)",
}
SECTIONS = ("model.", "init.", "reparam.", "optimizer.", "train.")


def alternatives():
    """(key, context, value) for every value worth trying of every key that the training depends on."""
    for key, kind, default, _, choices in declared(Config):
        if not key.startswith(SECTIONS) or key.startswith(NOT_TRAINING) or key in EQUIVALENT:
            continue
        context = dict(CONTEXT.get(key, {}))
        section, _, _ = key.rpartition(".")
        if f"{section.rpartition('.')[0]}.method" in METHOD_KEYS:
            context |= {f"{section.rpartition('.')[0]}.method": section.rpartition(".")[2]}
        for value in VALUES.get(key, _others(kind, default, choices)):
            if f"{key}={value}" not in EQUIVALENT:
                yield key, context, value


METHOD_KEYS = {key for key, *_ in declared(Config) if key.endswith(".method")}


def _others(kind, default, choices):
    if choices:
        return [choice for choice in choices if choice != default]
    if kind == "bool":
        return [not default]
    if kind in ("int", "float"):
        return [2 * default if default else 1]
    return []


@pytest.mark.parametrize(("key", "context", "value"), list(alternatives()), ids=lambda part: str(part)[:40])
def test_no_key_is_ignored(key, context, value):
    base = context | {key: context[key]} if key in context else context
    try:
        changed = signature({**context, key: value})
    except ConfigError as refusal:
        pytest.fail(f"{key}={value} was refused: {refusal}")
    assert signature(base) != changed, f"{key}={value} changes nothing"
