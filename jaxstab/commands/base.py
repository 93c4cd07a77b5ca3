"""What a command is: a line of help, its flags, and what it does with a command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxstab.config import ConfigError, flatten, local_path, unchosen

if TYPE_CHECKING:
    from jaxstab.train.config import Config


@dataclass(frozen=True)
class Flag:
    """A flag: `define` is absl's function for its kind. Commands that share a name share the kind and the default."""

    name: str
    default: Any
    help: str
    define: Callable[..., Any] = flags.DEFINE_string


@dataclass(frozen=True)
class Command:
    """One word of the command line.

    Attributes:
      help: what it does, in a line.
      run: does it.
      flags: its own, besides --config and --debug.
      config: whether it needs --config.
      files: how the files that it is about are written in a line of help; none where it takes no files.
    """

    help: str
    run: Callable[[Call], None]
    flags: tuple[Flag, ...] = ()
    config: bool = True
    files: str = ""


@dataclass(frozen=True)
class Call:
    """A parsed command line.

    Attributes:
      command: one of COMMANDS.
      files: those that it is about.
      values: the values of the flags.
      overridden: keys of the config that the command line gives.
    """

    command: str
    files: Sequence[str]
    values: flags.FlagValues
    overridden: Sequence[str] = ()

    def __getitem__(self, flag: str) -> Any:
        return self.values[flag].value

    def required(self, flag: str, example: str) -> str:
        """The value of a flag; raises ConfigError where it isn't given."""
        if not self[flag]:
            raise ConfigError(f"--{flag} is missing: for instance --{flag}={example}")
        return self[flag]

    def config(self) -> Config:
        """The config, checked; raises ConfigError."""
        from jaxstab.train.config import resolve

        if self["config"] is None:
            raise ConfigError("get_config of the config file returns None, instead of a ConfigDict")
        config = resolve(self["config"])
        refuse_idle(self.overridden, config)
        return config


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


def define_path(name: str, default: str | None, help: str, flag_values: flags.FlagValues) -> None:
    """Defines a flag that is a path: `~` is expanded, and object storage refused."""

    class Path(flags.ArgumentParser[str]):
        def parse(self, argument: str) -> str:
            return local_path(argument, f"--{name}")

    flags.DEFINE(Path(), name, default, help, flag_values)


WORKDIR = Flag("workdir", None, "Where the run is kept.", define_path)
FROM = Flag("from", None, "The folder of a Hugging Face model, or a file of llama2.c.", define_path)
STEP = Flag("step", None, "The checkpoint that is read; by default the newest.", flags.DEFINE_integer)
OUT = Flag("out", None, "What is written.", define_path)
