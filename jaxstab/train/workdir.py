"""What a workdir says of its run, and whether a config may continue it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import filelock

from jaxstab import durable, safe_json
from jaxstab.config import ConfigError, UserError, flatten, from_flat
from jaxstab.scale.hosts import ALONE, Hosts
from jaxstab.train.config import Config, training_keys

CONFIG = "config.json"


class BusyError(UserError):
    """Another run is at work in a workdir."""


def make(workdir: Path) -> None:
    """Makes a workdir where it is missing; raises UserError where it can't be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the workdir {workdir} can't be made: {error.strerror}") from error
    if not os.access(workdir, os.W_OK | os.X_OK):
        raise UserError(f"the workdir {workdir} can't be written: no permission")


@contextlib.contextmanager
def alone(workdir: Path, hosts: Hosts = ALONE) -> Iterator[None]:
    """Keeps a second run out of a workdir as long as this one is at work there.

    Raises:
      BusyError: another one is.
      UserError: the run's hosts don't share the workdir.
    """
    with _locked(workdir) if hosts.writes else contextlib.nullcontext():
        _check_shared(workdir, hosts)
        yield


def _check_shared(workdir: Path, hosts: Hosts) -> None:
    """Raises UserError where another host doesn't see what process 0 writes into the workdir."""
    if hosts.processes == 1:
        return
    path = workdir / ".shared"
    if hosts.writes:
        path.write_text(secrets.token_hex())
    word = hosts.told(path.read_text)
    reason = hosts.any_of("" if _reads(path, word) else f"{workdir} isn't the workdir that process 0 writes")
    if reason:
        raise UserError(f"{reason}: put it where all hosts see it, on a network file system")


def _reads(path: Path, word: str, seconds: float = 30) -> bool:
    """Whether a file has a text before long: a network file system may take its time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if path.read_text() == word:
                return True
        time.sleep(0.1)
    return False


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds the workdir's lock, which the system frees when this process ends, however it ends."""
    path = workdir / ".lock"
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BusyError(
            f"another run is at work in {workdir}{_holder(path)}; wait for it, or take another workdir"
        ) from error
    except OSError as error:
        raise UserError(f"the workdir {workdir} can't be locked: {error.strerror or error}") from error
    try:
        with contextlib.suppress(OSError):  # a disk that is full tells of itself where something is lost by it
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Which process has locked the workdir, by its own account; "" where it hasn't given one."""
    try:
        text = path.read_text("utf-8", errors="replace")[:200]
    except OSError:
        return ""
    return f" ({text})" if re.fullmatch(r"process \d+ on \S+", text) else ""


def claim(
    workdir: Path, config: Config, identity: dict[str, str], warn: Callable[[str], None] = logging.warning
) -> None:
    """Saves the resolved config in a new workdir, or checks it against the one that is there.

    A run may have been begun by another version of this package: keys that its config lacks have their defaults, and
    keys that no longer exist are named in a warning and left out.

    Args:
      workdir: exists.
      config: resolved.
      identity: digests of what the config names but doesn't hold: the tokenizer and the packed data.
      warn: takes the line that names keys that no longer exist.

    Raises:
      UserError: the workdir can't be written.
      ConfigError: it belongs to another run; the message lists the keys that differ.
    """
    path = workdir / CONFIG
    current = _json(training_keys(flatten(config)) | identity)
    try:
        if not path.exists():
            if any((workdir / "checkpoints").glob("[1-9]*")):  # that of step 0 may have been imported just now
                raise UserError(f"{workdir} has checkpoints, but no {CONFIG}: put it back, or take another workdir")
            write_whole(path, {"config": flatten(config), "identity": identity})
            return
        saved = safe_json.load(path)
        previous = training_keys({**_json(flatten(Config())), **saved["config"]}) | saved["identity"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be used ({type(error).__name__}: {error}); take another workdir") from error
    known = flatten(config) | identity
    dropped = [f"{key}={value!r}" for key, value in previous.items() if key not in known]
    if dropped:
        warn(f"{path} has keys that this version doesn't know and leaves out: {', '.join(dropped)}")
    refuse_another(f"{workdir} holds a run with", previous, current)
    if identity.keys() - saved["identity"].keys():  # an imported model, at the beginning of its training
        write_whole(path, {**saved, "identity": identity})


def refuse_another(what: str, previous: dict[str, Any], current: dict[str, Any]) -> None:
    """Raises ConfigError where two configs differ in a key that both have.

    Keys of one side alone belong to a method that the other hasn't chosen, or weren't there yet and had their default.

    Args:
      what: a workdir, and what it says that it has another config of.
      previous, current: the configs as JSON has them, there and here.
    """
    differing = [
        f"{key} (there {previous[key]!r}, here {value!r})"
        for key, value in current.items()
        if previous.get(key, value) != value
    ]
    if differing:
        raise ConfigError(f"{what} another config; take another workdir, or mend: {'; '.join(differing)}")


def check_same(workdir: Path, config: Config, free: Collection[str] = ()) -> None:
    """Raises ConfigError where the run in a workdir differs from `config` in keys that aren't free.

    The vocabulary may be left to the tokenizer. Raises UserError where the workdir can't be read.
    """
    saved = saved_config(workdir)
    config = config.with_vocabulary(saved.model.vocabulary)
    previous, current = (_json(training_keys(flatten(each))) for each in (saved, config))
    bound = {key: value for key, value in current.items() if key not in free}
    refuse_another(f"{workdir} holds a run with", previous, bound)


def saved_config(workdir: Path) -> Config:
    """The config that a workdir was claimed with; raises UserError where there is none that can be read."""
    path = workdir / CONFIG
    try:
        return from_flat(Config, safe_json.load(path)["config"])
    except FileNotFoundError as error:
        raise UserError(f"{workdir} has no {CONFIG}: it holds no run") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be used ({type(error).__name__}: {error})") from error


def _json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))


def write_whole(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON so that the file is there whole or not at all; raises UserError where it can't be written."""
    write_text_whole(path, json.dumps(values, indent=1) + "\n")


def write_text_whole(path: Path, text: str) -> None:
    """Writes a text so that the file is there whole or not at all; raises UserError where it can't be written."""
    try:
        durable.write(path, text)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from error
