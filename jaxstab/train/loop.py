"""The training loop: a run from its config to its last checkpoint, and on from wherever it was stopped."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxstab import data, scale
from jaxstab.config import ConfigError, UserError, flatten
from jaxstab.evaluate import evaluate, generate
from jaxstab.logging import RunLogger
from jaxstab.optimize import Hypers
from jaxstab.table import count
from jaxstab.train import lengths
from jaxstab.train import workdir as workdirs
from jaxstab.train.checkpoint import Checkpoints
from jaxstab.train.config import Config
from jaxstab.train.signals import Stopped, StopRequest
from jaxstab.train.step import Program, TrainState, build


def train(config: Config, workdir: Path, console: Console | None = None) -> None:
    """Trains, going on from the newest intact checkpoint of `workdir`.

    Raises:
      UserError: what the user can mend: data, a config that doesn't fit the workdir, a loss that isn't finite.
      Stopped: after SIGTERM or SIGINT, with the state saved.
    """
    console = console or Console(highlight=False)
    workdirs.make(workdir)
    with workdirs.alone(workdir):
        _train(config, workdir, console)


def _train(config: Config, workdir: Path, console: Console) -> None:
    say = functools.partial(console.print, soft_wrap=True, markup=False)
    corpus = data.prepare(config.data)
    texts = _prepare_texts(config)
    config = config.with_vocabulary(corpus.tokenizer.vocabulary)
    program = build(config, corpus.tokenizer.end)
    _check_ahead(config, corpus)
    identity = {"tokenizer_digest": corpus.tokenizer.digest, "data_digest": corpus.digest}
    workdirs.claim(workdir, config, identity)
    total = config.train.steps + config.train.extend
    with Checkpoints(workdir / "checkpoints", config.checkpoint, say) as checkpoints:
        restored = checkpoints.restore_latest(program.abstract_state)
        start = restored[0] if restored else 0
        if start >= total:
            say(f"The run in {workdir} is complete: {start} steps.\n{_how_to_go_on(workdir, start)}")
            return
        say(_plan(program, corpus, workdir, start, total))
        state = restored[1] if restored else program.init(config.train.seed)
        with RunLogger(workdir, config.log, start if restored else None, 0, total, console) as logger:
            run = Run(program, corpus, texts, logger, checkpoints, identity, total)
            with StopRequest().listening() as request:
                run.advance(state, start, request)
        say(f"Complete: {total} steps.\n{_how_to_go_on(workdir, total)}")


def _prepare_texts(config: Config) -> dict[str, data.PackedSplit]:
    """The text sets of `eval.texts`, by name."""
    texts = {}
    for text in config.eval.texts:
        name, _, files = text.partition("=")
        if not name or not files:
            raise ConfigError(f"eval.texts takes name=glob, not {text!r}")
        source = dataclasses.replace(config.data, source="text", files=(files,), validation_fraction=1.0, max_tokens=0)
        texts[name] = data.prepare(source).validation
    return texts


def _check_ahead(config: Config, corpus: data.Prepared) -> None:
    """Tells what the run would stumble over later, before the workdir is taken."""
    data.Batches(corpus.train, config.data.seed).records(0, config.train.batch_size)
    prompt = len(_prompt(config, corpus.tokenizer))
    if config.eval.sample_length and prompt >= config.model.max_length:
        raise ConfigError(
            f"eval.sample_prompt of {prompt} tokens, with the one that begins a document, leaves no room in "
            f"model.max_length={config.model.max_length}; shorten it"
        )


def _prompt(config: Config, tokenizer: data.Tokenizer) -> np.ndarray:
    (encoded,) = tokenizer.encode([config.eval.sample_prompt])
    return np.concatenate([[tokenizer.end], encoded]).astype(np.int32)


def _plan(program: Program, corpus: data.Prepared, workdir: Path, start: int, total: int) -> str:
    """What the run is going to do."""
    train, model = program.config.train, program.config.model
    tokens = train.batch_size * program.config.data.length
    cut = "".join(f", {after.length} after {after.first}" for after in _stages(program.config)[1:])
    cut = f" (records cut to {train.warmup_lengths[0]}{cut} steps)" if cut else ""
    devices = program.mesh.size
    return (
        f"{'Continuing' if start else 'Training'} in {workdir}: {count(program.reparam.table):,} parameters "
        f"({model.layers} blocks of width {model.width}, {program.config.reparam.method} over "
        f"{program.config.init.method}), steps {start} to {total} of {tokens:,} tokens{cut} "
        f"({total * tokens / max(1, corpus.train.tokens):.2g} epochs of {corpus.train.tokens:,} tokens), "
        f"on {devices} {jax.devices()[0].platform} device{'s' * (devices > 1)}. Compiling ..."
    )


def _stages(config: Config) -> tuple[lengths.Stage, ...]:
    return lengths.stages(config.train.warmup_lengths, config.train.length_warmup, config.data.length)


def _how_to_go_on(workdir: Path, steps: int) -> str:
    beside_python = os.path.relpath(Path(sys.executable).with_name("tensorboard"))
    return (
        f"Curves:      {'tensorboard' if shutil.which('tensorboard') else beside_python} --logdir {workdir}\n"
        f"Train on:    the same command with --config.train.extend={max(1, steps // 2)}, at the schedule's last rate\n"
        "Start anew:  the same command with another --workdir"
    )


@dataclasses.dataclass
class Run:
    """A run under way: what `advance` needs at every step."""

    program: Program
    corpus: data.Prepared
    texts: dict[str, data.PackedSplit]
    logger: RunLogger
    checkpoints: Checkpoints
    identity: dict[str, str]
    total: int

    def __post_init__(self) -> None:
        config = self.program.config
        self.config = config
        self.stages = _stages(config)
        rates = config.optimizer.learning_rate, config.optimizer.weight_decay
        self.hypers = jax.device_put(Hypers(*map(jnp.float32, rates)), scale.replicated(self.program.mesh))

    def advance(self, state: TrainState, start: int, request: StopRequest) -> TrainState:
        """Takes the steps from `start` to the end."""
        pending: tuple[int, Any] | None = None
        self._clock = time.monotonic()
        for step, tokens in enumerate(self._batches(start), start + 1):
            if step == 1:
                state = self.program.prepare(state, tokens)
            state, metrics = self.program.step(state, tokens, self.hypers)
            if pending:
                self._report(*pending, state)
            pending = step, metrics
            if not (self._evaluation_due(step) or self.checkpoints.due(step) or step == self.total or request.number):
                continue
            self._report(*pending, state)
            pending = None
            if self._evaluation_due(step):
                self._evaluate(step, state)
            signal = request.number  # read once: what is said to be saved has to be
            self._save(step, state, force=step == self.total or signal is not None)
            if signal and step < self.total:
                self.checkpoints.wait()
                raise Stopped(signal, step)
            self._clock = time.monotonic()
        return state

    def _batches(self, start: int) -> Iterator[jax.Array]:
        """Global batches from step `start` on, on the devices ahead of time."""
        batches = data.Batches(self.corpus.train, self.config.data.seed)
        size, sharding = self.config.train.batch_size, scale.batch_sharding(self.program.mesh)

        def batch(step: int) -> jax.Array:
            length = lengths.length_at(self.stages, step)
            return jax.device_put(batches.records(step * size, size)[:, : length + 1], sharding)

        return data.read_ahead(batch, range(start, self.total))

    def _report(self, step: int, metrics: tuple[dict[str, Any], dict[str, Any]], state: TrainState) -> None:
        """Fetches and logs a step's metrics, in one transfer."""
        scalars, arrays = jax.device_get(metrics)
        rows = self.config.train.batch_size
        tokens = rows * lengths.length_at(self.stages, step - 1)
        now = time.monotonic()
        scalars["train/tokens"] = rows * lengths.tokens_before(self.stages, step)
        scalars["train/perplexity"] = np.exp(np.minimum(scalars["train/loss"], 700))
        scalars["train/tokens_per_second"] = tokens / (now - self._clock)
        self._clock = now
        self.logger.train(step, {name: float(value) for name, value in scalars.items()}, arrays)
        if not scalars["train/finite"]:
            self._stop_at_non_finite(step, state)

    def _stop_at_non_finite(self, step: int, state: TrainState) -> None:
        """The device has kept the state before that step: saves it and says so."""
        self._save(step - 1, state._replace(finite=jnp.ones_like(state.finite)), force=True)
        self.checkpoints.wait()
        raise UserError(
            f"the loss, a gradient or the update was not finite at step {step}; the state before it is checkpoint "
            f"{step - 1}. A lower optimizer.learning_rate or a longer optimizer.warmup, in another --workdir, may help"
        )

    def _evaluation_due(self, step: int) -> bool:
        every = self.config.eval.every
        return step == self.total or (every > 0 and step % every == 0)

    def _evaluate(self, step: int, state: TrainState) -> None:
        options, weights = self.config.eval, self.program.merge(state)
        is_last = step == self.total
        splits = {"validation": self.corpus.validation, **(self.texts if is_last else {})}
        for name, split in splits.items():
            if not len(split):
                continue
            batches = options.final_batches if is_last else options.batches
            found = evaluate(self.program.evaluate, weights, split, self.config.train.batch_size, batches)
            self.logger.eval(step, {f"eval/{name}/{key}": value for key, value in found.items()})
        if options.sample_length:
            self.logger.text(step, "sample", self._sample(step, weights))

    def _sample(self, step: int, weights: Any) -> str:
        tokenizer, options = self.corpus.tokenizer, self.config.eval
        prompt = _prompt(self.config, tokenizer)
        length = min(options.sample_length, self.config.model.max_length - len(prompt))
        key = jax.random.fold_in(jax.random.key(self.config.train.seed), step)
        tokens = generate(self.program.model, weights, prompt, key, length, options.temperature)
        return tokenizer.decode(np.asarray(tokens)[1:].tolist())

    def _save(self, step: int, state: TrainState, force: bool) -> None:
        if not (force or self.checkpoints.due(step)):
            return
        self.logger.flush()
        position = step * self.config.train.batch_size
        meta = {"step": step, "position": position, "attempt": 0, "config": flatten(self.config), **self.identity}
        self.checkpoints.save(step, state, meta, force=True)
