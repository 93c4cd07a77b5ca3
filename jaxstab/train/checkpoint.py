"""Checkpoints that know whether they are intact.

Orbax writes and reads the arrays; beside them stands a record of every array's shape, dtype and digest, because Orbax
itself restores a file with a flipped bit, or casts to another dtype, without a word. A checkpoint that fails its
record is damaged: it is named, set aside, and the one before it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from jaxstab import durable
from jaxstab.config import Options, Range, UserError, option
from jaxstab.scale.hosts import ALONE, Hosts
from jaxstab.train.digests import digests
from jaxstab.train.record import and_more, described, mismatch, record_of, sealed

LONGEST_REASON = 200  # characters
# What TensorStore appends to a reason: [tensorstore_spec='...'], [os_error_code='28'], [source locations='...'].
ANNOTATION = re.compile(r"\s*\[[\w ]+(\[\d+\])?='([^'\\]|\\.)*'\]", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Options):
    """When checkpoints are written, and which of them stay."""

    every: int = option(1000, "Steps between two checkpoints; 0 saves at the end only.", Range(0))
    keep_last: int = option(
        2, "Newest checkpoints that are kept; the one before the last serves when that is damaged.", Range(1)
    )
    keep_every: int = option(0, "Checkpoints of steps divisible by this are kept for good; 0 keeps none.", Range(0))


class Checkpoints:
    """The checkpoints of a run, one directory per step; also a context manager."""

    def __init__(
        self,
        directory: str | Path,
        config: CheckpointConfig,
        warn: Callable[[str], None] = logging.warning,
        pinned: Callable[[], Collection[int]] = frozenset,
        hosts: Hosts = ALONE,
    ):
        """Opens `directory`, made if missing, and removes what killed saves have left there.

        From here on the process is silent about what orbax abandons; see `_silence_abandoned_reads`.

        Args:
          directory: where the checkpoints are.
          config: when to save and what to keep.
          warn: takes the line that names a damaged checkpoint.
          pinned: tells the steps whose checkpoints stay whatever `config` says; asked at every save.
          hosts: the run's processes, each of which writes and reads its part of the arrays.

        Raises:
          UserError: the directory cannot be made or read.
        """
        self._directory = Path(directory).absolute()
        self._every = config.every
        self._warn, self._hosts = warn, hosts
        self._saving = self._synced = -1
        _silence_abandoned_reads()
        policies = [LatestN(config.keep_last), _Pinned(pinned)]
        if config.keep_every:
            policies.append(EveryNSteps(config.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies), cleanup_tmp_directories=True
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            raise UserError(f"checkpoints cannot be kept in {self._directory}: {reason(error)}") from error
        hosts.agree(f"view of {self._directory}", {"checkpoints": self.steps()})

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending, with the one being written."""
        return sorted(self._manager.all_steps())

    def due(self, step: int) -> bool:
        """Whether the cadence asks for a checkpoint of this step."""
        return self._every > 0 and step > 0 and step % self._every == 0

    def save(self, step: int, state: Any, meta: dict[str, Any], force: bool = False) -> bool:
        """Starts writing a checkpoint; returns once the arrays may be donated or overwritten.

        Args:
          step: updates done so far.
          state: any pytree of jax arrays, on one mesh.
          meta: what else a resumed run needs, as JSON; the versions of the libraries are added under `versions`.
          force: save also when the step is not due.

        Returns:
          Whether a save was started: not where the step isn't due, or has its checkpoint already.

        Raises:
          UserError: this save could not be started, or the one before it has failed.
        """
        if not (force or self.due(step)) or step in self.steps():
            return False
        self.wait()
        record = ocp.args.JsonSave(record_of(step, state, meta))
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=record)
        self._saving = step
        self._or_user_error(lambda: self._manager.save(step, args=args, force=True))
        return True

    def wait(self) -> None:
        """Returns when the save in progress has reached the disk; raises UserError where it has failed."""
        self._or_user_error(self._finish)

    def _finish(self) -> None:
        """Orbax syncs the arrays; the record, what describes the arrays, and the names are brought to the disk here."""
        self._manager.wait_until_finished()
        if (self._directory / str(self._saving)).exists() and self._saving != self._synced:
            durable.sync_with_name(self._directory / str(self._saving))
            self._synced = self._saving

    def _or_user_error(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:  # whatever prevents a save, people read of it in one line
            self._manager.reload()
            raise UserError(
                f"checkpoint {self._saving} could not be written to {self._directory}: {reason(error)}"
            ) from error

    def close(self) -> None:
        """Finishes the save in progress and lets go of the directory; raises UserError where that save has failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """Reads one checkpoint and checks it against its record.

        Args:
          step: which one.
          abstract_state: the state as jax.ShapeDtypeStruct with shardings, on any mesh.

        Returns:
          The state, in the shardings of `abstract_state`, and the meta that was saved with it.

        Raises:
          UserError: there is no such checkpoint, it is damaged, or its arrays are not those of `abstract_state`.
        """
        if step not in self.steps():
            has = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"no checkpoint of step {step} in {self._directory}; there is: {has}")
        try:
            return self._read(step, abstract_state)
        except _DamagedError as damage:
            raise UserError(f"checkpoint {step} in {self._directory} is damaged: {damage}") from damage

    def restore_latest(self, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest intact checkpoint; newer damaged ones are named and set aside as `<step>.damaged`.

        Returns:
          The step, the state and the meta; None where there is no checkpoint.

        Raises:
          UserError: every checkpoint is damaged (they all stay in place), or the newest readable one holds other arrays
            than `abstract_state`.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                state, meta = self._read(step, abstract_state)
            except _DamagedError as damage:
                damaged[step] = str(damage)
                continue
            for bad, why in damaged.items():
                self._set_aside(bad)
                self._warn(f"checkpoint {bad} is damaged ({why}): moved to {bad}.damaged, going on from step {step}")
            return step, state, meta
        if damaged:
            named = "; ".join(f"{step} ({why})" for step, why in damaged.items())
            raise UserError(f"every checkpoint in {self._directory} is damaged: {named}. Start in another workdir")
        return None

    def abandon(self, abandoned: Callable[[int, int], bool]) -> None:
        """Deletes the checkpoints whose (step, attempt) is abandoned; killed at any moment, it can be done again."""
        self.wait()
        for step, attempt in self.attempts().items():
            if abandoned(step, attempt):
                self._manager.delete(step)

    def attempts(self) -> dict[int, int]:
        """The attempt that each checkpoint was made in; without those whose record can't be read."""
        attempts = {}
        for step in self.steps():
            with contextlib.suppress(_DamagedError):
                attempts[step] = self._record(step)["meta"].get("attempt", 0)
        return attempts

    def _read(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        record = self._record(step)
        difference = mismatch(record["arrays"], described(abstract_state))
        if difference:
            raise UserError(f"checkpoint {step} in {self._directory} is of another model or optimizer: {difference}")
        state = self._item(step, "state", ocp.args.StandardRestore(abstract_state))
        restored = described(state, digests(state))
        wrong = [path for path, array in record["arrays"].items() if restored.get(path) != array]
        if wrong:
            raise _DamagedError(f"{wrong[0]} is not what was written" + and_more(wrong))
        return state, record["meta"]

    def _record(self, step: int) -> dict[str, Any]:
        record = self._item(step, "record", ocp.args.JsonRestore())
        if not sealed(record):
            raise _DamagedError("its record has changed since it was written")
        if record.get("step", step) != step:  # records of older versions don't tell
            raise _DamagedError(f"it is of step {record['step']}, under another name")
        return record

    def _item(self, step: int, name: str, args: ocp.args.CheckpointArgs) -> Any:
        item, damage = None, ""
        try:
            item = self._manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # the machine's trouble, not the checkpoint's
        except Exception as error:  # a damaged file shows itself in many ways
            damage = f"its {name} cannot be read: {reason(_first(error))}"
        damage = self._hosts.any_of(damage)
        if damage:
            raise _DamagedError(damage)
        return item

    def _set_aside(self, step: int) -> None:
        target = self._directory / f"{step}.damaged"
        if self._hosts.writes:
            try:
                if target.exists():
                    shutil.rmtree(target)
                (self._directory / str(step)).rename(target)
            except OSError as error:
                raise UserError(f"{target} can't be written: {error.strerror}") from error
        self._hosts.meet()
        self._manager.reload()


def _silence_abandoned_reads() -> None:
    """Keeps Python from telling of exceptions in what nobody awaits any more, whenever they come: of a damaged
    checkpoint orbax abandons all other reads at the first that fails, and closes their loop."""
    tell = sys.unraisablehook
    if getattr(tell, "is_silent_about_reads", False):
        return

    def hook(exception: Any) -> None:
        modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(exception.exc_traceback)]
        if not any(module.startswith(("orbax.", "asyncio.")) for module in modules):
            tell(exception)

    hook.is_silent_about_reads = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def _first(error: BaseException) -> BaseException:
    """The exception that others were raised from."""
    return _first(error.__cause__) if error.__cause__ else error


@dataclasses.dataclass(frozen=True)
class _Pinned:
    """Orbax's preservation policy for what is pinned."""

    steps: Callable[[], Collection[int]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        pinned = self.steps()
        return [checkpoint.step in pinned for checkpoint in checkpoints]


class _DamagedError(Exception):
    """A checkpoint is not what was written."""


def reason(error: BaseException) -> str:
    """What went wrong, on one line. Libraries nest "where: why", so that a long text is cut before its end."""
    text = " ".join(ANNOTATION.sub("", str(error)).split())
    if len(text) > LONGEST_REASON:
        text = f"{text[:40]} ... {text[40 - LONGEST_REASON :]}"
    return f"{type(error).__name__}: {text}".rstrip(": ")
