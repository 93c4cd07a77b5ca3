"""The door: python main.py [COMMAND] --config=configs/quickstart.py --workdir=runs/quickstart"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging
from ml_collections import config_flags
from rich.console import Console

from jaxstab.config import ConfigError, UserError, declared, flatten, unchosen, unknown
from jaxstab.train.signals import Stopped

if TYPE_CHECKING:
    from jaxstab.train.config import Config

COMMANDS = {
    "train": "trains a model, or goes on with the run in --workdir (the default)",
    "describe": "prints what a config trains: a row per stored parameter, and their exact number",
    "diagnose": "says what happened to the run in --workdir, and where it began; writes report/diagnose.html there; "
    "with --replay=<step>, an incident's, it takes those steps again, with everything measured",
    "tev": "prints the token embedding variability of workdirs, checkpoints and safetensors files: tev FILE...",
    "compare": "runs a grid of --methods, --learning_rates and --seeds on a config, and reports what they came to",
    "data tokenizer": "trains a byte-pair tokenizer of --vocabulary pieces on the config's source, into --out",
    "data prepare": "writes the config's source as a TFDS data set --name below --out",
}
WITHOUT_CONFIG = ("diagnose", "tev")


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    debug = "--debug" in argv
    if not debug:
        logging.set_verbosity(logging.FATAL)  # a failed save, of which orbax logs much, is one line of ours
    try:
        command, files, values = parse(argv)
        run(command, files, values, overrides(argv))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Stopped as stopped:
        return _fail(str(stopped), stopped.exit_code)
    except Exception as error:
        if debug or not isinstance(error, UserError):
            raise
        return _fail(f"error: {error}", 1)
    return 0


def _fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def parse(argv: Sequence[str]) -> tuple[str, list[str], flags.FlagValues]:
    """Splits the command line into a command, the files that it is about, and flags; raises UserError at the rest."""
    argv = _overrides_checked(argv)
    values = flags.FlagValues()
    own: Any = {"flag_values": values}
    config_flags.DEFINE_config_file(
        "config", None, "Path of a config file.", flag_values=values, lock_config=True, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "Where the run is kept.", flag_values=values)
    flags.DEFINE_string(
        "replay", None, "The incident that diagnose replays: its step, as in incidents/<step>.", flag_values=values
    )
    flags.DEFINE_string("out", None, "What data commands write, and tev draws.", flag_values=values)
    flags.DEFINE_string("name", "corpus", "Name of the data set that `data prepare` writes.", flag_values=values)
    flags.DEFINE_integer("vocabulary", 8192, "Pieces of the tokenizer.", flag_values=values)
    flags.DEFINE_list("methods", [], "What compare compares, the baseline first: names of configs/methods.py.", **own)
    flags.DEFINE_list("learning_rates", [], "The peak rates that compare tries; by default the config's.", **own)
    flags.DEFINE_list("seeds", [], "The seeds of compare's runs; by default the config's.", **own)
    flags.DEFINE_multi_string("vary", [], "One more axis of compare's grid: --vary=key=value,value.", **own)
    flags.DEFINE_string("cells", "0/1", "The share of compare's runs that this machine takes: --cells=i/n.", **own)
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)
    if {"-h", "--help", "--helpfull"} & set(argv):
        print(_help(values))
        raise SystemExit(0)
    file = "" if argv[1:2] and argv[1] in WITHOUT_CONFIG else _config_file(argv)
    try:
        positional = values(argv)[1:]
    except UserError:
        raise
    except flags.Error as error:
        raise ConfigError(_line(error)) from error
    except Exception as error:  # the config file itself raises anything
        raise ConfigError(f"the config file {file} fails: {type(error).__name__}: {_line(error)}") from error
    files = positional[1:] if positional[:1] == ["tev"] else []
    command = " ".join(positional[: len(positional) - len(files)]) or "train"
    if command not in COMMANDS:
        raise UserError(unknown(f"command {command!r}", command, COMMANDS))
    return command, files, values


def _help(values: flags.FlagValues) -> str:
    commands = "\n".join(f"  {name:15} {what}" for name, what in COMMANDS.items())
    return f"{__doc__}\n\n{commands}\n\n{values.main_module_help()}\nKeys of --config: docs/configuration.md"


def _overrides_checked(argv: Sequence[str]) -> list[str]:
    """`argv`, once no `--config.a.b` names an unknown key; ml_collections would show a traceback.

    Tuples of strings may come without quotes, `--config.data.files=a/*.txt,b/*.txt`.
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
            argument = override[0] + repr(tuple(given.split(",")))
        checked.append(argument)
    return checked


def _config_file(argv: Sequence[str]) -> str:
    """The path that --config gives; raises ConfigError where there is none, or no such file."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        given = re.match(r"--?config(=|$)", argument)
        if given:
            path = (argument[given.end() :] if given[1] else following).split(":")[0]
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


def overrides(argv: Sequence[str]) -> list[str]:
    """The keys that `--config.key=value` and `--noconfig.key` give."""
    return [given[1] for argument in argv if (given := re.match(r"--?(?:no)?config\.([^=]+)", argument))]


def refuse_idle(overridden: Sequence[str], config: Config) -> None:
    """Raises a ConfigError for an overridden option of a method that the config doesn't choose: it has no effect."""
    flat = flatten(config)
    idle = unchosen(flat)
    for key in overridden:
        if key in idle:
            method = key.removeprefix(idle[key].removesuffix("method")).split(".")[0]
            raise ConfigError(
                f"--config.{key} has no effect with {idle[key]}={flat[idle[key]]}: leave it out, or add "
                f"--config.{idle[key]}={method}"
            )


def run(command: str, files: Sequence[str], values: flags.FlagValues, overridden: Sequence[str]) -> None:
    """Runs a parsed command.

    Args:
      command: one of COMMANDS.
      files: those that it is about.
      values: the values of the flags.
      overridden: keys of the config that the command line gives.
    """
    from jaxstab import data
    from jaxstab.train.config import resolve
    from jaxstab.train.describe import show
    from jaxstab.train.loop import train

    if command in WITHOUT_CONFIG:
        from jaxstab import diagnose

        if command == "tev":
            diagnose.tev(files, values.out)
        elif values.replay:
            diagnose.replay(_required(values, "workdir", "runs/first"), values.replay, Console(highlight=False))
        else:
            diagnose.diagnose(_required(values, "workdir", "runs/first"))
        return
    if values.config is None:
        raise ConfigError("get_config of the config file returns None, instead of a ConfigDict")
    config = resolve(values.config)
    refuse_idle(overridden, config)
    if command == "describe":
        if config.model.vocabulary == 0:
            tokenizer = data.load_tokenizer(config.data.tokenizer, config.data.end_token)
            config = config.with_vocabulary(tokenizer.vocabulary)
        show(config)
    elif command == "compare":
        _compare(config, values)
    elif command == "data tokenizer":
        data.train_tokenizer(config.data, values.vocabulary, _required(values, "out", "tokenizer.json"))
    elif command == "data prepare":
        data.prepare_tfds(config.data, _required(values, "out", "data"), values.name)
    else:
        train(config, Path(_required(values, "workdir", "runs/first")))


def _compare(config: Config, values: flags.FlagValues) -> None:
    from configs.methods import METHODS
    from jaxstab.compare import compare, read_grid

    if not values.methods:
        raise ConfigError("--methods is missing: for instance --methods=small,wesar")
    share = re.fullmatch(r"(\d+)/(\d+)", values.cells)
    if share is None or not int(share[1]) < int(share[2]):
        raise ConfigError(f"--cells={values.cells} must be i/n with i from 0 to n-1: for instance --cells=0/4")
    grid = read_grid(config, METHODS, values.methods, values.learning_rates, values.seeds, values.vary)
    compare(grid, Path(_required(values, "workdir", "runs/comparison")), (int(share[1]), int(share[2])))


def _required(values: flags.FlagValues, name: str, example: str) -> str:
    given = values[name].value
    if not given:
        raise ConfigError(f"--{name} is missing: for instance --{name}={example}")
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv))
