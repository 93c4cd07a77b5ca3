"""The door: python main.py [COMMAND] --config=configs/quickstart.py --workdir=runs/quickstart"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from jaxstab.commands import COMMANDS, WORKDIR, Call, Flag, overrides
from jaxstab.config import (
    ConfigError,
    EndedElsewhere,
    UserError,
    declared,
    flatten,
    local_path,
    to_config_dict,
    unknown,
)
from jaxstab.train.signals import Stopped

CONFIG = Flag("config", None, "Path of a config file; --config.key=value changes a key of it.")
DEBUG = Flag("debug", False, "Show the traceback of an error.", flags.DEFINE_bool)


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    debug = "--debug" in argv
    if not debug:
        logging.set_verbosity(logging.FATAL)  # a failed save, of which orbax logs much, is one line of ours
    if {"-h", "--help", "--helpfull"} & set(argv):
        print(_help(argv))
        raise SystemExit(0)
    try:
        call = parse(argv)
        COMMANDS[call.command].run(call)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (Stopped, EndedElsewhere) as ended:
        return _fail(str(ended), ended.exit_code)
    except Exception as error:
        if debug or not isinstance(error, UserError):
            raise
        return _fail(f"error: {error}", 1)
    return 0


def _fail(line: str, code: int) -> int:
    if line:
        print(line, file=sys.stderr)
    return code


def parse(argv: Sequence[str]) -> Call:
    """Splits the command line into a command, the files that it is about, and flags; raises UserError at the rest."""
    overridden = overrides(argv)
    argv = _overrides_checked(argv)
    values = _defined(argv)
    first = COMMANDS.get(argv[1]) if argv[1:] else None
    saves = isinstance(values[CONFIG.name].value, ConfigDict)
    file = _config_file(argv) if (first is None or first.config) and not saves else ""
    try:
        positional = values(argv)[1:]
    except UserError:
        raise
    except flags.Error as error:
        raise ConfigError(_line(error)) from error
    except Exception as error:  # the config file itself raises anything
        raise ConfigError(f"the config file {file} fails: {type(error).__name__}: {_line(error)}") from error
    takes_files = bool(positional) and positional[0] in COMMANDS and bool(COMMANDS[positional[0]].files)
    words = 1 if takes_files else len(positional)
    command = " ".join(positional[:words]) or "train"
    if command not in COMMANDS:
        if positional[0] in COMMANDS:
            raise UserError(f"{positional[0]} takes no {positional[1]!r}: a flag's values have commas and no spaces")
        raise UserError(unknown(f"command {command!r}", command, COMMANDS))
    _refuse_foreign(command, values)
    return Call(command, positional[words:], values, overridden)


def _defined(argv: Sequence[str]) -> flags.FlagValues:
    """The flags of all commands: which command it is, is known only when they are parsed."""
    values = flags.FlagValues()
    own: Any = {"flag_values": values, "lock_config": True, "sys_argv": list(argv)}
    saved = _saved_config(argv)
    if saved is None:
        config_flags.DEFINE_config_file(CONFIG.name, CONFIG.default, CONFIG.help, **own)
    else:
        config_flags.DEFINE_config_dict(CONFIG.name, saved, CONFIG.help, **own)
    every = {flag.name: flag for command in COMMANDS.values() for flag in command.flags}
    for flag in (DEBUG, *every.values()):
        flag.define(flag.name, flag.default, flag.help, flag_values=values)
    return values


def _refuse_foreign(command: str, values: flags.FlagValues) -> None:
    """Raises a ConfigError for a flag of another command."""
    # "describe" is often put into the line that trains, whose workdir it has no need of.
    own = {flag.name for flag in (CONFIG, DEBUG, WORKDIR, *COMMANDS[command].flags)}
    for name in (name for name in values if values[name].present and name not in own):
        users = [other for other, each in COMMANDS.items() if name in {flag.name for flag in each.flags}]
        if users:
            raise ConfigError(f"--{name} means nothing to {command}: it is a flag of {', '.join(users)}")


def _help(argv: Sequence[str]) -> str:
    """The help of the commands that `argv` names, or of all."""
    words = " ".join(argument for argument in argv[1:] if not argument.startswith("-"))
    asked = {name: command for name, command in COMMANDS.items() if words and name.startswith(words)} or COMMANDS
    lines = [__doc__ or ""]
    for name, command in asked.items():
        lines.append(f"\n{name} {command.files}".rstrip())
        lines.append(f"  {command.help}")
        lines += [f"  --{flag.name}: {flag.help}" for flag in command.flags]
    lines.append("\nAll commands but these take --config: " + ", ".join(n for n, c in COMMANDS.items() if not c.config))
    lines += [f"  --{flag.name}: {flag.help}" for flag in (CONFIG, DEBUG)]
    return "\n".join([*lines, "\nKeys of --config: docs/configuration.md"])


def _overrides_checked(argv: Sequence[str]) -> list[str]:
    """`argv`, once no `--config.a.b` names an unknown key; ml_collections would show a traceback.

    Tuples of strings may come without quotes, `--config.data.files=a/*.txt,b/*.txt`; `--config=~/x.py` is expanded.
    """
    from jaxstab.train.config import Config

    known = flatten(Config())
    texts = {key for key, kind, *_ in declared(Config) if kind == "tuple[str, ...]"}
    checked = []
    for argument in argv:
        override = re.match(r"--?(no)?config\.([^=]+)(=?)", argument)
        if override and override[2] not in known:
            raise ConfigError(unknown(f"config key {override[2]}", override[2], known))
        given = argument[override.end() :] if override else ""
        if override and override[3] and override[2] in texts and not given.startswith(("'", '"', "(")):
            argument = override[0] + repr(tuple(filter(None, map(str.strip, given.split(",")))))
        if re.match(r"--?config=~", argument):
            argument = "--config=" + os.path.expanduser(argument.partition("=")[2])
        checked.append(argument)
    return checked


def _saved_config(argv: Sequence[str]) -> ConfigDict | None:
    """The config of the run in --workdir, where a run goes on without --config; None elsewhere."""
    from jaxstab.train.workdir import CONFIG as SAVED
    from jaxstab.train.workdir import saved_config

    goes_on = argv[1:2] in ([], ["train"]) or argv[1].startswith("-")
    given = _value(argv, "workdir")
    if not goes_on or _value(argv, "config") is not None or given is None:
        return None
    workdir = Path(local_path(given, "--workdir"))
    return to_config_dict(saved_config(workdir)) if (workdir / SAVED).is_file() else None


def _value(argv: Sequence[str], flag: str) -> str | None:
    """What --flag=value or --flag value gives; None where it isn't there."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        given = re.match(rf"--?{flag}(=|$)", argument)
        if given:
            return argument[given.end() :] if given[1] else following
    return None


def _config_file(argv: Sequence[str]) -> str:
    """The path that --config gives; raises ConfigError where there is none, or no such file."""
    given = _value(argv, "config")
    if given is not None:
        path = given.split(":")[0]
        if not Path(path).is_file():
            raise ConfigError(
                f"there is no file {path}, which --config names: for instance --config=configs/quickstart.py"
            )
        return path
    raise ConfigError("--config is missing: for instance --config=configs/quickstart.py")


def _line(error: Exception) -> str:
    """One line of what absl or ml_collections say in several: how it begins and, of a traceback, how it ends."""
    lines = str(error.args[0] if isinstance(error, KeyError) else error).strip().splitlines() or [""]
    return " ".join(dict.fromkeys([lines[0], lines[-1]]))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
