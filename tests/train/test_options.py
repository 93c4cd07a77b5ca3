"""Options together, and one by one: every allowed pair trains as it always did, and no key is ignored.

That a key does what it says is for the tests of its room; here a key that nothing reads fails.
"""

import itertools
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab.config import ConfigError, declared
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.model.placements import PLACEMENTS
from jaxstab.optimize import Hypers
from jaxstab.reparam import METHODS
from jaxstab.table import rows
from jaxstab.train.config import NOT_TRAINING, Config, default_config, resolve
from jaxstab.train.document import REGISTRIES
from jaxstab.train.packed import unpack
from jaxstab.train.program import build

STEPS = 20
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 31, (STEPS, 4, 9)), jnp.int32)
HYPERS = Hypers(jnp.float32(3e-4), jnp.float32(0.1))
GOLDEN_FILE = Path(__file__).with_name("golden.json")
UPDATES_GOLDEN = bool(os.environ.get("UPDATE_GOLDEN"))
HOW_TO_UPDATE = """{what}
Where nobody meant to change a method, a default, the model or the step, that is a mistake to be found. Where somebody
did, or added a method, or where a new JAX rounds or draws otherwise, say so in the commit and write the file again:

    UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/train/test_options.py -k golden

It writes the runs that -k selects (a run's name selects it alone), and adds some for methods and pairs that no run has.
"""

ATTENTION = {
    "plain": {},
    "grouped": {"model.kv_heads": 1},
    "qk_norm": {"model.qk_norm": True},
    "softcap": {"model.attention_softcap": 5.0},
    "masked": {"model.mask_documents": True},
}
# Any two values of two of these are together in a golden run.
DIMENSIONS = {
    "reparam.method": list(METHODS),
    "model.norm_placement.method": list(PLACEMENTS),
    "model.embedding.method": list(EMBEDDINGS),
    "attention": list(ATTENTION),
}
# Every method of these is in a golden run.
OTHERS = {
    key: list(methods)
    for key, (_, methods) in REGISTRIES.items()
    if key not in DIMENSIONS and key != "init_search.method"  # before the first step (tests/train/test_search.py)
}
# With these, the methods have something to do in few steps.
AT_WORK = {
    "optimizer.clip.zclip.warmup": 4,
    "optimizer.clip.adagc.warmup": 4,
    "optimizer.rule.spam.interval": 8,
    "optimizer.rule.spam.grace": 3,
    "optimizer.rule.spam.rewarm": 4,
    "optimizer.rule.spam.threshold": 5.0,
    "optimizer.projection.qk_clip.threshold": 0.05,
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


def changes_of(combination):
    """The config keys of a combination, in which `attention` stands for several."""
    changes = {key: value for key, value in combination.items() if key != "attention"}
    return AT_WORK | ATTENTION[combination["attention"]] | changes


def pairs_of(combination):
    """Its pairs of values along DIMENSIONS."""
    return {frozenset(pair) for pair in itertools.combinations([(key, combination[key]) for key in DIMENSIONS], 2)}


def covering(combinations):
    """The combinations, and few more, so that every pair along DIMENSIONS and every method of OTHERS is there.

    Pairs are found greedily. Each new combination takes those methods that the fewest have so far, as far as the
    config allows them together.
    """
    combinations = list(combinations)
    everything = [dict(zip(DIMENSIONS, values, strict=True)) for values in itertools.product(*DIMENSIONS.values())]
    pairs = set().union(*map(pairs_of, everything)) - set().union(*map(pairs_of, combinations))

    def uses(key, method):
        return sum(each[key] == method for each in combinations)

    while pairs or missing_methods(combinations):
        new = dict(max(everything, key=lambda each: len(pairs_of(each) & pairs)))
        for key, methods in OTHERS.items():
            for method in sorted(methods, key=lambda method: uses(key, method)):
                if is_allowed(new | {key: method}):
                    new[key] = method
                    break
        combinations.append(new)
        pairs -= pairs_of(new)
    return combinations


def missing_methods(combinations):
    return [
        f"{key}={method}"
        for key, methods in OTHERS.items()
        for method in methods
        if not any(each[key] == method for each in combinations)
    ]


def is_allowed(combination):
    try:
        program = build(config_of(changes_of(combination)), end=3)
        jax.eval_shape(program.step, program.abstract_state, TOKENS[0], HYPERS)
    except ConfigError:
        return False
    return True


GOLDEN = {tuple(run["combination"].items()): run for run in json.loads(GOLDEN_FILE.read_text())}
COMBINATIONS = covering(map(dict, GOLDEN)) if UPDATES_GOLDEN else list(map(dict, GOLDEN))


def test_golden_runs_have_every_method_and_every_pair():
    wanted = set().union(
        *(pairs_of(dict(zip(DIMENSIONS, v, strict=True))) for v in itertools.product(*DIMENSIONS.values()))
    )
    pairs = wanted - set().union(*map(pairs_of, COMBINATIONS))
    if pairs or missing_methods(COMBINATIONS):
        lacks = [*missing_methods(COMBINATIONS), *(" with ".join(f"{k}={v}" for k, v in pair) for pair in pairs)]
        pytest.fail(HOW_TO_UPDATE.format(what=f"golden.json has no run with {', '.join(lacks)}."))


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda combination: "-".join(combination.values()))
def test_golden_run(combination):
    """A run of 20 steps has the losses and norms that it always had, and merges to the model's weights."""
    program = build(config_of(changes_of(combination)), end=3)
    state = program.init(0)
    losses = []
    for tokens in TOKENS:
        state, metrics = program.step(state, tokens, HYPERS)
        scalars, _ = unpack(metrics)
        losses.append(scalars["train/loss"])
        if len(losses) == STEPS // 2:  # later on, rounding has grown in some runs
            names = "grad_norm", "grad_norm_effective", "update_norm"
            norms = {name: scalars[f"train/{name}"] for name in names}
            trees = {"stored_norm": state.raw, "effective_norm": program.merge(state)}
            norms |= {name: float(optax.tree.norm(tree)) for name, tree in trees.items()}
    assert scalars["train/finite"] == 1
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.raw))
    merged = jax.eval_shape(program.merge, state)
    assert jax.tree.map(lambda leaf: leaf.shape, merged) == jax.tree.map(lambda row: row.shape, program.setup.table)
    run = {"combination": combination, "losses": losses, "norms": norms}
    if UPDATES_GOLDEN:
        GOLDEN[tuple(combination.items())] = run
        lines = ",\n".join(json.dumps(each) for each in GOLDEN.values())
        GOLDEN_FILE.write_text(f"[\n{lines}\n]\n")
        return
    golden = GOLDEN[tuple(combination.items())]
    for name, values in {"losses": losses, **norms}.items():
        expected = golden["losses"] if name == "losses" else golden["norms"][name]
        # Rounding, which another order of sums changes, grows from step to step.
        rtol = np.where(np.arange(STEPS) < STEPS // 2, 1e-5, 1e-2) if name == "losses" else 1e-4
        if not np.allclose(values, expected, rtol=rtol, atol=0):
            what = f"The {name} of the golden run {combination} were {expected} and are {values}."
            pytest.fail(HOW_TO_UPDATE.format(what=what))


def signature(changes):
    """What is stored, and the programs that start and train it, constants included: an ignored key leaves no trace."""
    program = build(config_of(changes), end=3)
    programs = [
        jax.make_jaxpr(program.init)(0),
        jax.make_jaxpr(program.step)(program.abstract_state, TOKENS[0], HYPERS),
    ]
    table = rows(program.setup.table) + rows(program.setup.reparam.table)
    hypers = (
        program.setup.config.optimizer.learning_rate,
        program.setup.config.optimizer.weight_decay,
        program.setup.config.train.seed,
    )
    return table, re.sub(r"0x[0-9a-f]+", "", "".join(map(str, programs))), hypers


# What has to be set for a key to have an effect, and values where the rule below makes none that fits.
CONTEXT = {
    "optimizer.clip_on": {"reparam.method": "wesar", "optimizer.clip.global_norm.max_norm": 0.01},
    "reparam.weight_norm.constant": {"reparam.weight_norm.gate": "constant"},
    "optimizer.clip.method": {"optimizer.clip.global_norm.max_norm": 0.01},
    "optimizer.clip.global_norm.max_norm": {"optimizer.clip.global_norm.max_norm": 0.01},
    "model.norm_eps": {"model.norm_eps": 0.1},
    "model.position_offset": {"model.positions": "learned"},
    "model.qk_norm_joint": {"model.qk_norm": True},
    "reparam.wesar.gates": {"model.mlp": "swiglu"},
    "model.mlp_clamp": {"model.mlp": "swiglu"},
    "model.norm_alpha": {"model.norm": "dyt"},
    "optimizer.restart_above": {"stability.on_spike": "skip"},
}
VALUES = {
    "optimizer.rule.adamw.b1": [0.5],
    "optimizer.rule.adamw.b2": [0.5],
    "optimizer.rule.muon.momentum": [0.5],
    "optimizer.rule.muon.b1": [0.5],
    "optimizer.rule.muon.b2": [0.5],
    "optimizer.clip.adagc.decay": [0.5],
    "optimizer.clip.zclip.decay": [0.5],
    "optimizer.update_clip.adagc.decay": [0.5],
    "optimizer.update_clip.zclip.decay": [0.5],
    **{
        f"optimizer.rule.{rule}.{b}": [0.5]
        for rule in ("stable_adamw", "cautious_adamw", "normuon", "spam")
        for b in ("b1", "b2")
    },
    "optimizer.rule.batch_adamw.b1": [0.5],
    "optimizer.rule.batch_adamw.b2": [0.97],
    "optimizer.rule.normuon.momentum": [0.5],
    "optimizer.rule.normuon.unit_decay": [0.5],
    "optimizer.decay_factors": [("q_proj=0",)],
    "model.norm_placement.mix.fraction": [1.0],  # of two blocks both, not one
    "model.heads": [4],
    "model.kv_heads": [1],
    "model.layers": [3],
    "model.head_size": [6],
    "model.rotary_fraction": [0.5],
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
    for key, kind, default, _, choices, _ in declared(Config):
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
