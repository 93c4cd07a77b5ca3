"""What is done about an incident: a step that is a spike, or not finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxstab.config import UserError, flatten
from jaxstab.stability import DEVIATIONS, StabilityConfig
from jaxstab.train import incidents
from jaxstab.train import journal as journals
from jaxstab.train.journal import Journal, Rollback
from jaxstab.train.state import TrainState

if TYPE_CHECKING:
    from jaxstab.train.loop import Trainer


class UnstableError(UserError):
    """The run stops, since a step was a spike or not finite and nothing else is left to be done about it."""


@dataclasses.dataclass(frozen=True)
class Action:
    """What is done about an incident.

    Attributes:
      response: log, skip, "taken as a new level", rollback or stop.
      reason: what was measured, on one line.
      replay_from: the step of the checkpoint that a replay starts from; 0 is the initial state.
      was_taken: whether the step changed the state, as one does whose update alone is a spike or not finite.
      rollback: what a roll-back writes into the journal.
    """

    response: str
    reason: str
    replay_from: int
    was_taken: bool
    rollback: Rollback | None = None


class RolledBack(Exception):
    """The journal has a roll-back that has not taken effect yet."""


def decide(
    options: StabilityConfig,
    journal: Journal,
    checkpoints: Collection[int],
    step: int,
    scalars: Mapping[str, float],
) -> Action:
    """What is done about the incident at a step.

    Args:
      options: the policies.
      journal: as it stands.
      checkpoints: the steps that have one.
      step: of the incident.
      scalars: its metrics.
    """
    policy = options.on_spike if scalars["train/finite"] else options.on_nonfinite
    reason = reason_of(options, scalars)
    before, was_taken = max((at for at in checkpoints if at < step), default=0), not scalars["train/skipped"]
    if not scalars["train/halted"]:
        new_level = policy == "skip" and was_taken
        return Action("taken as a new level" if new_level else policy, reason, before, was_taken)
    if policy == "rollback" and journal.attempt < options.max_rollbacks:
        rollback = _rollback(options, journal, checkpoints, step, reason)
        return Action("rollback", reason, rollback.to, was_taken, rollback)
    return Action("stop", reason, before, was_taken)


def _rollback(
    options: StabilityConfig, journal: Journal, checkpoints: Collection[int], step: int, reason: str
) -> Rollback:
    """A roll-back to the newest checkpoint that is old enough; it leaves out the batches around the incident's."""
    to = max((at for at in checkpoints if at <= step - options.rollback_steps), default=0)
    batch = journal.batch_of(step)
    return Rollback(
        attempt=journal.attempt + 1,
        step=step,
        to=to,
        skip=(max(journal.batch_of(to + 1), batch - options.skip_before), batch + options.skip_batches),
        learning_rate=options.rollback_learning_rate,
        max_norm=options.rollback_max_norm,
        until=to + options.rollback_while,
        reason=reason,
    )


def reason_of(options: StabilityConfig, scalars: Mapping[str, float]) -> str:
    """What was measured at a step that is a spike, or not finite."""
    if not scalars["train/finite"]:
        return "the loss, a gradient or the update was not finite"
    deviations = {name: scalars[f"stability/{DEVIATIONS[options.rule]}/{name}"] for name in options.watch}
    name = max(deviations, key=lambda name: abs(deviations[name]))
    return f"{name} {scalars[f'train/{name}']:.4g} was {deviations[name]:.1f} standard deviations from its mean"


def act(action: Action, trainer: Trainer, step: int, state: TrainState) -> None:
    """Writes down the incident of a step, and rolls back or stops if that is the action.

    Args:
      action: what is done.
      trainer: of the run; every checkpoint is on the disk.
      step: of the incident.
      state: the device's, which is needed where the run stops: that before the step, unless the step was taken.

    Raises:
      RolledBack: the journal tells where to go on from.
      UnstableError: the run stops; the state before the step is saved, unless the step was taken.
    """
    _leave_incident(action, trainer, step)
    if action.rollback:
        first, end = action.rollback.skip
        trainer.logger.flush()
        if trainer.hosts.writes:
            journals.append(trainer.workdir, action.rollback)
        trainer.hosts.meet()  # all read it now
        trainer.logger.notice(
            f"step {step}: back to step {action.rollback.to}, leaving out batches {first} to {end - 1}"
        )
        raise RolledBack
    if action.response == "stop":
        attempt = trainer.journal.attempt
        raise UnstableError(
            f"{action.reason} at step {step}{f', after {attempt} roll-backs' if attempt else ''}; "
            f"{_where_it_goes_on(action, trainer, step, state)}. A lower optimizer.learning_rate or a longer "
            f"optimizer.warmup, in another --workdir, may help; {trainer.workdir / incidents.DIRECTORY} has what was "
            "measured"
        )


def _where_it_goes_on(action: Action, trainer: Trainer, step: int, state: TrainState) -> str:
    """Says where the run goes on; saves the state before a step where the device still has it."""
    if action.was_taken:
        return f"the run goes on from {f'checkpoint {action.replay_from}' if action.replay_from else 'its beginning'}"
    guard = state.guard._replace(halted=jnp.zeros_like(state.guard.halted))
    trainer.save(step - 1, state._replace(guard=guard))
    trainer.checkpoints.wait()
    return f"the state before it is checkpoint {step - 1}"


def _leave_incident(action: Action, trainer: Trainer, step: int) -> None:
    if not trainer.hosts.writes:
        return
    inputs, limit = trainer.inputs, trainer.config.stability.incidents
    record = {
        "reason": action.reason,
        "response": action.response,
        "checkpoint": action.replay_from,
        "batch": trainer.journal.batch_of(step),
        "records": inputs.records(step),
        "journal": dataclasses.asdict(trainer.journal),
        "config": flatten(trainer.config),
        "identity": trainer.identity,
    }
    try:
        path = trainer.incidents.write(record, inputs.tokens(step), trainer.evaluation.corpus.tokenizer)
        place = f"see {path}" if path else f"the {limit} incidents that are kept are others"
    except OSError as error:
        place = f"it could not be written down ({error})"
    trainer.logger.notice(f"step {step}: {action.reason} ({action.response}); {place}")
