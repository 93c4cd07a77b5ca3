"""Options together, and one by one: every allowed pair takes a finite step, and no key is ignored."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.config import ConfigError, declared
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.model.placements import PLACEMENTS
from jaxstab.model.transformer import Transformer
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


@pytest.mark.parametrize("combination", covering(DIMENSIONS), ids=lambda combination: "-".join(combination.values()))
def test_every_pair_takes_a_finite_step_and_merge_keeps_the_logits(combination):
    changes = {**combination, **ATTENTION[combination["attention"]]}
    del changes["attention"]
    program = build(config_of(changes), end=3)
    state = program.init(0)
    for _ in range(2):
        state, (scalars, _) = program.step(state, TOKENS, HYPERS)
    assert scalars["train/finite"] == 1
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.raw))
    merged = program.merge(state)
    effective, _ = program.reparam.effective(state.raw, state.reparam)
    logits = [Transformer(program.config.model).apply({"params": each}, TOKENS[:, 1:]) for each in (merged, effective)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)


def signature(changes):
    """Everything that an option may change: what is stored, and losses, norms and weights of a few steps."""
    program = build(config_of(changes), end=3)
    state = program.init(0)
    found = []
    for _ in range(3):
        state, (scalars, _) = program.step(state, TOKENS, HYPERS)
        found += [scalars["train/loss"], scalars["train/grad_norm"], scalars["train/learning_rate"]]
    found += [jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(program.merge(state))]
    found += [jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(state.raw)]
    return tuple((row.path, row.shape) for row in rows(program.reparam.table)), np.array(jax.device_get(found))


def differ(one, other):
    return one[0] != other[0] or not np.allclose(one[1], other[1], rtol=1e-6, atol=0)


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


@pytest.mark.parametrize(("key", "context", "value"), alternatives(), ids=lambda part: str(part)[:40])
def test_no_key_is_ignored(key, context, value):
    base = context | {key: context[key]} if key in context else context
    try:
        changed = signature({**context, key: value})
    except ConfigError as refusal:
        pytest.fail(f"{key}={value} was refused: {refusal}")
    assert differ(signature(base), changed), f"{key}={value} changes nothing"
