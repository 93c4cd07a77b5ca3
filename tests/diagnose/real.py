"""Real runs of tiny models, in memory: what a step is given is changed at will, and its measurements are a History."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.config import ConfigError, flatten
from jaxstab.diagnose.history import History, Series
from jaxstab.table import leaves_of, like, named_rows
from jaxstab.train.config import Config
from jaxstab.train.journal import Journal
from jaxstab.train.packed import unpack
from jaxstab.train.program import build
from jaxstab.train.step_io import StepBatches, hypers
from tests.diagnose.conftest import config

STEPS, BATCH, LENGTH, VOCABULARY = 64, 4, 16, 31
TINY = dict(
    model__width=16, model__layers=3, model__heads=2, model__vocabulary=VOCABULARY, model__max_length=LENGTH,
    model__remat="none", data__length=LENGTH, train__steps=STEPS, train__batch_size=BATCH, train__loss_chunk=16,
    optimizer__warmup=8, optimizer__learning_rate=3e-3, optimizer__schedule__method="cosine",
)  # fmt: skip


class Records(NamedTuple):
    """A split in memory."""

    tokens: np.ndarray
    name: str = "train"
    length: int = LENGTH

    def __len__(self):
        return len(self.tokens)

    def read(self, indices):
        return self.tokens[list(indices)]


@dataclasses.dataclass
class Real:
    """A program and its data: text of a language in which a token tells much about the next."""

    config: Config

    def __post_init__(self):
        self.program = build(self.config, 0)
        dice = np.random.default_rng(0)
        follows = dice.integers(0, VOCABULARY, (VOCABULARY, 3))
        tokens = [np.zeros(BATCH * STEPS, np.int64)]
        for _ in range(LENGTH):
            tokens.append(follows[tokens[-1], dice.integers(0, 3, BATCH * STEPS)])
        self.split = Records(np.stack(tokens, axis=1).astype(np.int32))
        batches = StepBatches(self.config, self.split, Journal())
        self.batches = np.stack([batches.tokens(step) for step in range(1, STEPS + 1)])

    def run(self, steps=STEPS, *, state_of=None, tokens_of=None, hypers_of=None) -> History:
        """Trains; each function takes the step and what belongs to it, and gives what takes its place."""
        state, pairs = self.program.init(0), defaultdict(list)
        for step in range(1, steps + 1):
            asked = self.batches[step - 1]
            given = tokens_of(step, asked) if tokens_of else asked
            if step == 1:
                state = self.program.prepare(state, given)
            state = state_of(step, state) if state_of else state
            rates = self._hypers._replace(position=np.int32(step - 1))
            state, metrics = self.program.step(state, given, hypers_of(step, rates) if hypers_of else rates)
            scalars, arrays = unpack(metrics)
            scalars["train/position"] = float((step - 1) * BATCH)
            scalars["train/unigram_loss"] = float(np.log(VOCABULARY))
            for name, value in scalars.items():
                pairs[name].append((step, [value]))
            for name, value in arrays.items():
                pairs[name].append((step, value))
        series = {name: Series(*map(np.array, zip(*each, strict=True))) for name, each in pairs.items()}
        return History(Path("runs/real"), series, frozenset(), flatten(self.config), split=self.split)

    @functools.cached_property
    def _hypers(self):
        return hypers(self.program)

    def written(self, state, name, function):
        """A state whose stored parameter of that name is what `function` makes of it."""
        table = self.program.setup.stored_table
        leaves = leaves_of(table, state.raw)
        changed = [function(x) if each == name else x for each, x in zip(named_rows(table), leaves, strict=True)]
        return state._replace(raw=like(table, changed))

    def moments(self, state, kind, name, function):
        """A state whose moment `kind` of a stored parameter is what `function` makes of it."""
        path = named_rows(self.program.setup.stored_table)[name].path

        def leaf(key_path, x):
            at = jax.tree_util.keystr(key_path, simple=True, separator="/")
            return function(x) if f"/{kind}/" in at and at.endswith(path) else x

        return state._replace(optimizer=jax.tree_util.tree_map_with_path(leaf, state.optimizer))


@functools.lru_cache(maxsize=2)
def real(**changes) -> Real:
    """A tiny run; `reparam__method="wesar"` changes a key. Raises ConfigError where the keys don't go together."""
    return Real(config(**(TINY | changes)))


def copied(state):
    """A copy of a state, which the next step doesn't take over."""
    return jax.tree.map(jnp.copy, state)


__all__ = ["BATCH", "STEPS", "ConfigError", "Real", "copied", "real"]
