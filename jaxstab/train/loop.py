"""The training loop: a run from its config to its last checkpoint, and on from wherever it was stopped."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxstab import data
from jaxstab.config import ConfigError, UserError, flatten
from jaxstab.evaluate import evaluate, generate
from jaxstab.logging import RunLogger
from jaxstab.stability import DEVIATIONS, StabilityConfig
from jaxstab.table import count
from jaxstab.train import incidents
from jaxstab.train import journal as journals
from jaxstab.train import workdir as workdirs
from jaxstab.train.checkpoint import Checkpoints
from jaxstab.train.config import Config
from jaxstab.train.course import Course, stages
from jaxstab.train.packed import Packed, pack, unpack
from jaxstab.train.program import Program, build
from jaxstab.train.signals import Stopped, StopRequest
from jaxstab.train.state import TrainState


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
    pinned = functools.partial(incidents.pinned, workdir)
    with Checkpoints(workdir / "checkpoints", config.checkpoint, say, pinned) as checkpoints:
        while _attempt(program, corpus, texts, identity, checkpoints, workdir, console):
            pass


def _attempt(
    program: Program,
    corpus: data.Prepared,
    texts: dict[str, data.PackedSplit],
    identity: dict[str, str],
    checkpoints: Checkpoints,
    workdir: Path,
    console: Console,
) -> bool:
    """Goes on from the newest checkpoint that the journal hasn't abandoned; whether the journal now asks for another
    attempt. A roll-back is a line in the journal and a new attempt, so that one killed midway goes on like any run."""
    say, config = functools.partial(console.print, soft_wrap=True, markup=False), program.setup.config
    total = config.train.steps + config.train.extend
    journal = journals.read(workdir)
    checkpoints.abandon(journal.abandons)
    restored = checkpoints.restore_latest(program.abstract_state)
    start = restored[0] if restored else 0
    if restored:
        journals.check(journal, restored[2], config.train.batch_size)
    if start >= total:
        say(f"The run in {workdir} is complete: {start} steps.\n{_how_to_go_on(workdir, start)}")
        return False
    say(_plan(program, corpus, workdir, start, total))
    state = restored[1] if restored else program.init(config.train.seed)
    del restored
    settings = flatten(config)
    with RunLogger(workdir, config.log, start or None, journal.attempt, total, console, settings) as logger:
        seen = incidents.Incidents(workdir, config.stability.incidents, journal.attempt, start)
        run = Run(program, corpus, texts, logger, checkpoints, identity, workdir, journal, seen)
        with StopRequest().listening() as request:
            try:
                run.advance(state, start, request)
            except RolledBack:
                return True
        logger.complete()
    say(f"Complete: {total} steps.\n{_how_to_go_on(workdir, total)}")
    return False


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
    train, model = program.setup.config.train, program.setup.config.model
    tokens = train.batch_size * program.setup.config.data.length
    cut = "".join(f", {after.length} after {after.first}" for after in stages(program.setup.config)[1:])
    cut = f" (records cut to {train.warmup_lengths[0]}{cut} steps)" if cut else ""
    devices = program.setup.mesh.size
    return (
        f"{'Continuing' if start else 'Training'} in {workdir}: {count(program.setup.reparam.table):,} parameters "
        f"({model.layers} blocks of width {model.width}, {program.setup.config.reparam.method} over "
        f"{program.setup.config.init.method}), steps {start} to {total} of {tokens:,} tokens{cut} "
        f"({total * tokens / max(1, corpus.train.tokens):.2g} epochs of {corpus.train.tokens:,} tokens), "
        f"on {devices} {jax.devices()[0].platform} device{'s' * (devices > 1)}. Compiling ..."
    )


def seen(scalars: dict[str, float], options: StabilityConfig) -> str:
    """What was seen of a step that is a spike, or not finite."""
    if not scalars["train/finite"]:
        return "the loss, a gradient or the update was not finite"
    far = {name: scalars[f"stability/{DEVIATIONS[options.rule]}/{name}"] for name in options.watch}
    name = max(far, key=lambda name: abs(far[name]))
    return f"{name} {scalars[f'train/{name}']:.4g} was {far[name]:.1f} standard deviations from its mean"


def _how_to_go_on(workdir: Path, steps: int) -> str:
    beside_python = os.path.relpath(Path(sys.executable).with_name("tensorboard"))
    return (
        f"Curves:      {'tensorboard' if shutil.which('tensorboard') else beside_python} --logdir {workdir}\n"
        f"Train on:    the same command with --config.train.extend={max(1, steps // 2)}, at the schedule's last rate\n"
        "Start anew:  the same command with another --workdir"
    )


class RolledBack(Exception):
    """The journal has a roll-back that has not taken effect yet."""


@dataclasses.dataclass
class Run:
    """A run under way: what `advance` needs at every step."""

    program: Program
    corpus: data.Prepared
    texts: dict[str, data.PackedSplit]
    logger: RunLogger
    checkpoints: Checkpoints
    identity: dict[str, str]
    workdir: Path
    journal: journals.Journal
    incidents: incidents.Incidents

    def __post_init__(self) -> None:
        self.config = self.program.setup.config
        self.total = self.config.train.steps + self.config.train.extend
        self.course = Course(self.program, self.corpus.train, self.journal)

    def advance(self, state: TrainState, start: int, request: StopRequest) -> TrainState:
        """Takes the steps from `start` to the end."""
        pending: tuple[int, Packed] | None = None
        self._clock = time.monotonic()
        for step, tokens in enumerate(self.course.ahead(start + 1, self.total), start + 1):
            if step == 1:
                state = self.program.prepare(state, tokens)
            measured = self.program.measure(state, tokens) if self._measurement_due(step) else ()
            state, told = self.program.step(state, tokens, self.course.hypers(step))
            packed = pack(*told, *measured)
            if pending:
                self._report(*pending, state)
            pending = step, packed
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

    def _report(self, step: int, packed: Packed, state: TrainState) -> None:
        """Fetches and logs a step's metrics."""
        scalars, arrays = unpack(packed)
        tokens = self.config.train.batch_size * self.course.length(step)
        now = time.monotonic()
        scalars["train/tokens"] = float(self.course.tokens_up_to(step))
        scalars["train/perplexity"] = float(np.exp(np.minimum(scalars["train/loss"], 700)))
        scalars["train/tokens_per_second"] = tokens / (now - self._clock)
        self._clock = now
        self.logger.train(step, scalars, arrays)
        self.incidents.remember(step, scalars, arrays)
        if incidents.is_one(scalars):
            self._respond(step, scalars, state)

    def _respond(self, step: int, scalars: dict[str, float], state: TrainState) -> None:
        """Leaves an incident, and does what a halted device, which has kept the state before that step, waits for."""
        halted, options = bool(scalars["train/halted"]), self.config.stability
        if not halted and self.incidents.goes_on:
            return
        response = options.on_spike if scalars["train/finite"] else options.on_nonfinite
        if response == "skip" and not scalars["train/skipped"]:
            response = "taken as a new level"
        reason = seen(scalars, options)
        self.checkpoints.wait()  # what is gone back to, and replayed from, has to be on the disk
        to = max((at for at in self.checkpoints.steps() if at <= step - options.rollback_steps), default=0)
        rolls_back = halted and response == "rollback" and self.journal.attempt < options.max_rollbacks
        self._leave_incident(step, "rollback" if rolls_back else "stop" if halted else response, reason, to)
        if rolls_back:
            self._roll_back(step, to, reason)
        if halted:
            guard = state.guard._replace(halted=jnp.zeros_like(state.guard.halted))
            self._save(step - 1, state._replace(guard=guard), force=True)
            self.checkpoints.wait()
            after = f", after {self.journal.attempt} roll-backs" if self.journal.attempt else ""
            raise UserError(
                f"{reason} at step {step}{after}; the state before it is checkpoint {step - 1}. A lower "
                "optimizer.learning_rate or a longer optimizer.warmup, in another --workdir, may help; "
                f"{self.workdir / incidents.DIRECTORY} has what was seen"
            )

    def _leave_incident(self, step: int, response: str, reason: str, to: int) -> None:
        before = max((at for at in self.checkpoints.steps() if at < step), default=0)
        record = {
            "reason": reason,
            "response": response,
            "checkpoint": to if response == "rollback" else before,
            "batch": self.journal.batch_of(step),
            "records": self.course.records(step),
            "journal": dataclasses.asdict(self.journal),
            "config": flatten(self.config),
            "identity": self.identity,
        }
        path = self.incidents.write(record, self.course.tokens(step), self.corpus.tokenizer)
        kept = f"see {path}" if path else f"the {self.config.stability.incidents} incidents that are kept are others"
        self.logger.notice(f"step {step}: {reason} ({response}); {kept}")

    def _roll_back(self, step: int, to: int, reason: str) -> None:
        options, journal, batch = self.config.stability, self.journal, self.journal.batch_of(step)
        first = max(journal.batch_of(to + 1), batch - options.skip_before)
        self.logger.flush()
        journals.append(
            self.workdir,
            journals.Rollback(
                attempt=journal.attempt + 1,
                step=step,
                to=to,
                skip=(first, batch + options.skip_batches),
                learning_rate=options.rollback_learning_rate,
                max_norm=options.rollback_max_norm,
                until=to + options.rollback_while,
                reason=reason,
            ),
        )
        self.logger.notice(
            f"step {step}: back to step {to}, leaving out batches {first} to {batch + options.skip_batches - 1}"
        )
        raise RolledBack

    def _measurement_due(self, step: int) -> bool:
        options = self.config.stability
        return options.measure == "full" and (step == 1 or step % options.measure_every == 0)

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
        tokens = generate(self.program.setup.model, weights, prompt, key, length, options.temperature)
        return tokenizer.decode(np.asarray(tokens)[1:].tolist())

    def _save(self, step: int, state: TrainState, force: bool) -> None:
        if not (force or self.checkpoints.due(step)):
            return
        self.logger.flush()
        position, attempt = self.course.position(step + 1), self.journal.attempt
        meta = {"step": step, "position": position, "attempt": attempt, "config": flatten(self.config), **self.identity}
        self.checkpoints.save(step, state, meta, force=True)
