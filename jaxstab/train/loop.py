"""The training loop: a run from its config to its last checkpoint, and on from wherever it was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxstab import data, scale
from jaxstab.config import flatten
from jaxstab.evaluate import opened
from jaxstab.logging import RunLogger, SilentLogger
from jaxstab.logging.console import say
from jaxstab.model.flops import flops_per_token
from jaxstab.scale.chips import peak_flops
from jaxstab.train import incidents, messages, recovery
from jaxstab.train import journal as journals
from jaxstab.train import workdir as workdirs
from jaxstab.train.checkpoint import Checkpoints
from jaxstab.train.clock import StepClock
from jaxstab.train.config import Config
from jaxstab.train.evaluation import Evaluation, Judge, check_prompt, prepare_texts
from jaxstab.train.packed import Packed, pack, unpack
from jaxstab.train.program import Program, build
from jaxstab.train.record import versions
from jaxstab.train.signals import StopRequest
from jaxstab.train.state import TrainState
from jaxstab.train.step_io import StepInputs


def train(
    config: Config,
    workdir: Path,
    console: Console | None = None,
    programs: Callable[..., Program] | None = None,
    request: StopRequest | None = None,
) -> None:
    """Trains, going on from the newest intact checkpoint of `workdir`.

    Args:
      config: of the run.
      workdir: where it is kept.
      console: shows how far it is.
      programs: (config, end token) -> its program; `build` by default. Runs that follow each other may share one.
      request: asks the run to stop; by default one that hears the signals, which only the main thread does.

    Raises:
      UserError: what the user can mend: data, a config that doesn't fit the workdir, a loss that isn't finite.
      Stopped: after SIGTERM or SIGINT, with the state saved.
    """
    with scale.joined(config.hosts, _same_everywhere(config)) as hosts:
        console = (console or Console(highlight=False)) if hosts.writes else Console(quiet=True)
        workdirs.make(workdir)
        with workdirs.alone(workdir, hosts):
            _train(config, workdir, console, programs or build, hosts, request)


# Keys of what a host has for itself.
OF_ONE_HOST = ("hosts.process", "data.files", "data.data_dir", "data.cache_dir", "data.workers", "data.tokenizer")


def _same_everywhere(config: Config) -> dict[str, Any]:
    """What all processes of a run must have been started with."""
    return {key: value for key, value in flatten(config).items() if key not in OF_ONE_HOST} | versions()


def _train(
    config: Config,
    workdir: Path,
    console: Console,
    programs: Callable[..., Program],
    hosts: scale.Hosts,
    request: StopRequest | None,
) -> None:
    tokenizer = data.load_tokenizer(config.data.tokenizer, config.data.end_token)
    config = config.with_vocabulary(tokenizer.vocabulary)
    program = programs(config, tokenizer.end)  # first, so that what doesn't fit together costs no tokenising
    check_prompt(config, tokenizer)
    benchmarks = opened(config.eval.benchmark_data, config.eval.benchmarks, limit=config.eval.benchmark_limit)
    corpus, texts = hosts.in_turn(lambda: (data.prepare(config.data), prepare_texts(config)))
    data.Batches(corpus.train, config.data.seed).records(0, config.train.batch_size)  # raises where there are too few
    identity = {"tokenizer_digest": corpus.tokenizer.digest, "data_digest": corpus.digest}
    warn = functools.partial(say, console)

    hosts.agree("set of data", identity | {f"records of {name}": len(split) for name, split in texts.items()})

    def pinned() -> list[int]:
        return hosts.told(lambda: sorted(incidents.pinned(workdir) | {0}))  # the state of step 0 may be imported

    if hosts.writes:
        workdirs.claim(workdir, config, identity, warn)
    evaluation = Evaluation(program, corpus, texts, benchmarks)
    with Checkpoints(workdir / "checkpoints", config.checkpoint, warn, pinned, hosts) as checkpoints:
        while _attempt(program, corpus, evaluation, identity, checkpoints, workdir, console, hosts, request):
            pass


def _attempt(
    program: Program,
    corpus: data.Prepared,
    evaluation: Evaluation,
    identity: dict[str, str],
    checkpoints: Checkpoints,
    workdir: Path,
    console: Console,
    hosts: scale.Hosts,
    given: StopRequest | None,
) -> bool:
    """Goes on from the newest checkpoint that the journal hasn't abandoned; returns whether another attempt is due.

    A roll-back is a line in the journal and a new attempt, so that a roll-back killed midway goes on like any run.
    """
    config, journal = program.setup.config, journals.read(workdir, functools.partial(say, console))
    checkpoints.abandon(journal.abandons)
    restored = checkpoints.restore_latest(program.abstract_state)
    start, meta = (restored[0], restored[2]) if restored else (0, {"attempt": journal.attempt})
    if restored:
        journals.check(journal, meta, config.train.batch_size)
    unjudged = evaluation.unjudged(workdir, start, meta["attempt"]) if meta["attempt"] == journal.attempt else {}
    if start >= config.total_steps and not unjudged:
        say(console, f"The run in {workdir} is complete: {start} steps.")
        say(console, messages.how_to_go_on(program, workdir, start))
        return False
    inputs = StepInputs(program, corpus.train, journal)
    say(console, messages.plan(program, corpus, inputs, workdir, start))
    searches = config.search and not restored
    state = restored[1] if restored else inputs.initial_state(console)
    del restored
    total, settings = config.total_steps, flatten(config)
    with (
        (
            RunLogger(workdir, config.log, start or None, journal.attempt, total, console, settings)
            if hosts.writes
            else SilentLogger()
        ) as logger,
        contextlib.nullcontext(given) if given else StopRequest(hosts).listening() as request,
        StepClock() as clock,
    ):
        history = incidents.Incidents(workdir, config.stability.incidents, journal.attempt, start, logger.notice)
        trainer = Trainer(
            program, inputs, evaluation, logger, checkpoints, identity, workdir, journal, history, request, clock, hosts
        )
        if searches:
            trainer.save(0, state)  # so that neither a roll-back nor a resume searches again
        try:
            trainer.advance(state, start, unjudged)
        except recovery.RolledBack:
            return True
        logger.complete()
    say(console, f"Complete: {total} steps.")
    say(console, messages.how_to_go_on(program, workdir, total))
    return False


@dataclasses.dataclass
class Trainer:
    """An attempt under way: what `advance` needs at every step."""

    program: Program
    inputs: StepInputs
    evaluation: Evaluation
    logger: RunLogger
    checkpoints: Checkpoints
    identity: dict[str, str]
    workdir: Path
    journal: journals.Journal
    incidents: incidents.Incidents
    request: StopRequest
    clock: StepClock
    hosts: scale.Hosts

    def __post_init__(self) -> None:
        self.config = self.program.setup.config
        self.total = self.config.total_steps
        self.peak = peak_flops(self.program.setup.mesh.devices.flat)
        self.warned = -messages.HORIZON  # the last step at which a spike was foretold

    def advance(self, state: TrainState, start: int, unjudged: dict[str, Judge]) -> TrainState:
        """Takes the steps after `start` to the end; before that, the sets in `unjudged` judge the state of `start`.

        On return the last checkpoint is on the disk.
        """
        pending: _Dispatched | None = None
        if unjudged:
            self._evaluate(start, state, unjudged)
        self.clock.restart()
        for step, tokens in enumerate(self.inputs.ahead(start + 1, self.total), start + 1):
            state, dispatched = self._dispatch(step, state, tokens)
            if pending:
                self._report(pending, state)
            pending = dispatched
            if self._pauses_after(step):
                self._report(pending, state)
                pending = None
                self._pause(step, state)
                self.clock.restart()
        self.checkpoints.wait()
        return state

    def _dispatch(self, step: int, state: TrainState, tokens: Any) -> tuple[TrainState, _Dispatched]:
        """Starts a step, without waiting for it."""
        measured = []
        if self._measurement_due(step):
            measured = [jax.block_until_ready(pack(*self.program.measure(state, tokens, self.inputs.hypers(step))))]
            self.clock.restart()
        state, metrics = self.program.step(state, tokens, self.inputs.hypers(step))
        seconds = self.clock.watch(metrics)
        return state, _Dispatched(step, [metrics, *measured], seconds)

    def _report(self, dispatched: _Dispatched, state: TrainState) -> None:
        """Fetches and logs a step's metrics, and answers an incident; the device of `state` may have halted."""
        step, (scalars, arrays) = dispatched.step, unpack(*dispatched.packed)
        length = self.inputs.length(step)
        scalars["train/tokens"] = float(self.inputs.tokens_up_to(step))
        scalars |= self.inputs.metrics(step)
        scalars["train/perplexity"] = float(np.exp(np.minimum(scalars["train/loss"], 700)))
        speed = self.config.train.batch_size * length / dispatched.seconds.result()
        scalars["train/tokens_per_second"] = speed
        if self.peak:
            scalars["train/mfu"] = speed * flops_per_token(self.program.setup.table, length)["full"] / self.peak
        self.logger.train(step, scalars, arrays)
        self._warn(step, scalars)
        self.incidents.remember(step, scalars, arrays)
        if incidents.is_incident(scalars) and (scalars["train/halted"] or not self.incidents.goes_on):
            self.checkpoints.wait()  # a roll-back or a replay starts from what is on the disk
            action = recovery.decide(self.config.stability, self.journal, self.checkpoints.steps(), step, scalars)
            recovery.act(action, self, step, state)

    def _warn(self, step: int, scalars: dict[str, float]) -> None:
        """Tells of a spike that is foretold, once in HORIZON steps."""
        if scalars["stability/foretold"] and step >= self.warned + messages.HORIZON:
            self.warned = step
            self.logger.notice(messages.foretold(step))

    def _pauses_after(self, step: int) -> bool:
        """Whether the next step waits for what is done with this one."""
        is_due = self.evaluation.due(step) or self.checkpoints.due(step)
        return is_due or step == self.total or self.request.agreed() is not None

    def _pause(self, step: int, state: TrainState) -> None:
        """Saves a step, which has been reported, evaluates it, and stops where a signal asks for it."""
        if self.checkpoints.due(step) or step == self.total:
            self.save(step, state)
        if self.evaluation.due(step):
            self.checkpoints.wait()  # so that a kill during the evaluation doesn't lose the step
        try:
            if self.evaluation.due(step):
                self._evaluate(step, state, self.evaluation.sets(step))
            if step < self.total:
                self.request.answer(step)
        except Exception:  # whatever ends the run here, be it a signal, the step is saved
            self.save(step, state)
            self.checkpoints.wait()
            raise

    def _evaluate(self, step: int, state: TrainState, sets: dict[str, Judge]) -> None:
        self.evaluation.run(step, state, sets, self.logger, functools.partial(self.request.answer, step))

    def save(self, step: int, state: TrainState) -> None:
        """Saves a step whose metrics are logged, unless it has its checkpoint already."""
        self.logger.flush()
        position, attempt = self.inputs.position(step + 1), self.journal.attempt
        meta = {"step": step, "position": position, "attempt": attempt, "config": flatten(self.config), **self.identity}
        self.checkpoints.save(step, state, meta, force=True)

    def _measurement_due(self, step: int) -> bool:
        options = self.config.stability
        return options.measure == "full" and (step == 1 or step % options.measure_every == 0)


@dataclasses.dataclass(frozen=True)
class _Dispatched:
    """A step under way: what it measures, and the seconds that it takes."""

    step: int
    packed: list[Packed]
    seconds: Future[float]
