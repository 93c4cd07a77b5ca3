"""Configuration: frozen dataclasses declare the keys, a ConfigDict carries the overrides.

Every room declares its own options next to the code that uses them:

    @dataclasses.dataclass(frozen=True)
    class ModelConfig(Options):
        width: int = option(768, "Model width d.", Range(1))
        mlp: str = option("gelu", "Activation of the MLP.", choices=("gelu", "swiglu"))

Every number has a `Range`. `to_config_dict` makes the ConfigDict that the command line overrides, `from_config_dict`
turns it back, once, and refuses what doesn't fit with a `ConfigError` of one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

LONGEST_MESSAGE = 4000  # characters


class UserError(Exception):
    """A mistake that its maker can mend: the message is one line, and no traceback is shown.

    Whatever was given and is told again, the line is one, can be printed, and isn't longer than LONGEST_MESSAGE.
    """

    def __str__(self) -> str:
        text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in super().__str__())
        half = LONGEST_MESSAGE // 2
        return text if len(text) <= LONGEST_MESSAGE else f"{text[: half - 5]} ... {text[-half:]}"


class EndedElsewhere(Exception):
    """This process of a run ends, with all others, for a reason that another one tells."""

    def __init__(self, exit_code: int):
        super().__init__("")
        self.exit_code = exit_code


class ConfigError(UserError):
    """A configuration that cannot be used."""


def local_path(given: str, name: str) -> str:
    """A path with `~` expanded; raises ConfigError for one on object storage.

    Files are appended to, locked and renamed here, none of which object storage does.
    """
    if "://" in given:
        raise ConfigError(
            f"{name}={given} is on object storage, where files can't be appended to or locked; take a directory that "
            "all hosts see (NFS, Filestore, Lustre, FSx), and copy it there afterwards"
        )
    return os.path.expanduser(given)


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that an option takes: `Range(1)` at least 1, `Range(0, 1)` from 0 to 1, `Range(above=0)` above 0,
    `Range(0, below=1)` at least 0 and below 1."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        ends = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{words} {end}" for words, end in ends.items() if end is not None)

    def check(self, key: str, value: Any) -> None:
        """Raises a ConfigError where the value, or an entry of a tuple, is out of range."""
        for number in value if isinstance(value, tuple) else (value,):
            if number not in self:
                raise ConfigError(f"{key}={value} must {'each ' * isinstance(value, tuple)}be {self}")


def option(
    default: Any, doc: str, numbers: Range | None = None, *, choices: tuple[Any, ...] | None = None, joined: str = ""
) -> Any:
    """A key of a configuration dataclass: its default, one line of documentation, and its allowed values.

    A number has a range, which holds for every entry of a tuple; a string may have choices. With `joined`, the value
    is one choice, or several with that string between them.
    """
    metadata = {"doc": doc, "range": numbers, "choices": choices, "joined": joined}
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type) -> Any:
    """A nested group of keys, declared by the dataclass `cls`."""
    return dataclasses.field(default_factory=cls)


class Options:
    """The base of every configuration dataclass: its numbers are checked, whoever builds it."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(typing.cast(Any, self)):
            if numbers := field.metadata.get("range"):
                numbers.check(field.name, getattr(self, field.name))


@dataclasses.dataclass(frozen=True)
class MethodConfig(Options):
    """A choice among registered methods; see `method_section`."""

    method: str


def method_section(
    name: str, methods: Mapping[str, Callable[..., Any]], default: str, doc: str, *, joined: str = ""
) -> type[MethodConfig]:
    """Declares a choice among registered methods, each with the options that its own signature declares:

        def wesar(sigma: Annotated[float, "Standard deviation of a stored matrix.", Range(above=0)] = 0.0063): ...

    The result has the key `method` and a sub-section for every method with options. Registering a function is all it
    takes to make it known to the command line: `--config.reparam.method=wesar --config.reparam.wesar.sigma=1`.
    A number's range follows its documentation, and so do the choices of a string:
    `Annotated[str, "Doc.", ("a", "b")]`.
    With `joined="+"`, several methods are chosen at once, `--config.reparam.method=mlra+wesar`; see `build_methods`.
    """
    fields: list[Any] = [("method", str, option(default, doc, choices=tuple(methods), joined=joined))]
    for key, method in methods.items():
        options = [_option_of(parameter, method) for parameter in inspect.signature(method).parameters.values()]
        if options:
            cls = dataclasses.make_dataclass(key, options, bases=(Options,), frozen=True)
            fields.append((key, cls, section(cls)))
    return dataclasses.make_dataclass(name, fields, bases=(MethodConfig,), frozen=True)


def _option_of(parameter: inspect.Parameter, method: Callable[..., Any]) -> tuple[str, Any, Any]:
    hint = typing.get_type_hints(method, include_extras=True).get(parameter.name)
    if typing.get_origin(hint) is not typing.Annotated:
        raise TypeError(
            f"option {parameter.name} of {method.__name__} needs a type and a line: Annotated[float, '...']"
        )
    kind, doc, *allowed = typing.get_args(hint)
    numbers = next((each for each in allowed if isinstance(each, Range)), None)
    choices = next((each for each in allowed if isinstance(each, tuple)), None)
    return parameter.name, kind, option(parameter.default, doc, numbers, choices=choices)


def build_method(config: MethodConfig, methods: Mapping[str, Callable[..., Any]]) -> Any:
    """Calls the method that a `method_section` has chosen with its options."""
    return _build(config.method, config, methods)


def build_methods(config: MethodConfig, methods: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """Calls every method that a `method_section(joined="+")` has chosen, {name: what it returns}.

    Raises:
      ConfigError: a name is there twice.
    """
    names = config.method.split("+")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"method={config.method} has {twice} twice; once is enough")
    return {name: _build(name, config, methods) for name in names}


def _build(name: str, config: MethodConfig, methods: Mapping[str, Callable[..., Any]]) -> Any:
    options = getattr(config, name, None)
    return methods[name](**(vars(options) if options else {}))


def to_config_dict(config: Any) -> ConfigDict:
    """The overridable form of a configuration dataclass."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values[field.name] = to_config_dict(value) if dataclasses.is_dataclass(value) else value
    return ConfigDict(values)


def from_config_dict(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Builds `cls` from a (possibly overridden) mapping; raises ConfigError at the first thing that doesn't fit."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    types = _types(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(unknown(f"config key {prefix}{key!s}", key, fields, prefix))
    built = {}
    for name, field in fields.items():
        if name not in values:
            continue
        value = values[name]
        if dataclasses.is_dataclass(types[name]):
            if not isinstance(value, Mapping | ConfigDict):
                raise ConfigError(f"config key {prefix}{name} is a section, not the value {value!r}")
            built[name] = from_config_dict(types[name], value, f"{prefix}{name}.")
        else:
            built[name] = _checked(prefix + name, value, types[name], field.metadata)
    return cls(**built)


def _types(cls: type) -> dict[str, Any]:
    """The type of every key; a section's is the class that makes its default."""
    hints = typing.get_type_hints(cls)
    made = {field.name: field.default_factory for field in dataclasses.fields(cls)}
    return {name: made[name] if dataclasses.is_dataclass(made[name]) else hints[name] for name in made}


def _checked(key: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` as a `kind`: ints widen to float, lists to tuples, and nothing else is converted."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        items = (value,) if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ConfigError(f"config key {key} takes a tuple, not {value!r}")
        value = tuple(_checked(key, item, arguments[0], {}) for item in items)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"config key {key} takes {_article(kind.__name__)}, not {value!r}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"config key {key} takes a finite number, not {value}")
    if numbers := metadata.get("range"):
        numbers.check(key, value)
    choices, joined = metadata.get("choices"), metadata.get("joined")
    if choices is not None and not set(value.split(joined) if joined else (value,)) <= set(choices):
        several = f" (or several, joined by {joined})" if joined else ""
        raise ConfigError(f"config key {key}={value!r} is not one of: {', '.join(map(str, choices))}{several}")
    return value


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def unknown(what: str, given: str, known: Any, prefix: str = "") -> str:
    """One line that names an unknown thing and the nearest known one (or all of them, when none is near)."""
    near = difflib.get_close_matches(given, list(known), n=1)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(prefix + str(key) for key in known)}"
    return f"unknown {what}; {hint}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """`{"model.width": 768, ...}`, in the order of declaration."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = value
    return flat


def unchosen(flat: Mapping[str, Any]) -> dict[str, str]:
    """Options of methods that aren't chosen, in what `flatten` gives: {key: the key that chooses the method}."""
    idle = {}
    for choice in (key for key in flat if key.endswith(".method")):
        section = choice.removesuffix("method")
        for key in (key for key in flat if key.startswith(section)):
            method, _, name = key.removeprefix(section).partition(".")
            if name and method not in flat[choice].split("+"):
                idle[key] = choice
    return idle


def from_flat(cls: type, flat: Mapping[str, Any]) -> Any:
    """Builds `cls` from what `flatten` made of it when a run was saved, maybe by another version of this package.

    Keys that weren't there yet take their defaults, and keys that no longer exist are left out. Raises ConfigError at
    values that don't fit, as `from_config_dict` does.
    """
    known = {key for key, *_ in declared(cls)}
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if key not in known:
            continue
        *sections, name = key.split(".")
        inner = nested
        for part in sections:
            inner = inner.setdefault(part, {})
        inner[name] = value
    return from_config_dict(cls, nested)


class Declared(NamedTuple):
    """What is declared of a key: its type as it is written, its default, documentation, choices and range."""

    key: str
    type: str
    default: Any
    doc: str
    choices: tuple[Any, ...] | None
    range: Range | None


def declared(cls: type, prefix: str = "") -> Iterator[Declared]:
    """Yields what is declared of every key, in order."""
    types = _types(cls)
    for field in dataclasses.fields(cls):
        kind = types[field.name]
        if dataclasses.is_dataclass(kind):
            yield from declared(typing.cast(type, kind), f"{prefix}{field.name}.")
        else:
            name = str(kind) if typing.get_origin(kind) else kind.__name__
            allowed = field.metadata["choices"], field.metadata["range"]
            yield Declared(prefix + field.name, name, field.default, field.metadata["doc"], *allowed)


def parse_argument(argument: str | None, **choices: tuple[str, ...]) -> dict[str, str]:
    """Parses a config file's argument, `configs/x.py:size=130m,method=wesar`; the first choice is the default.

    A name with no choices, `name=()`, takes any value and defaults to "".
    """
    parsed = {name: allowed[0] if allowed else "" for name, allowed in choices.items()}
    for item in filter(None, (argument or "").split(",")):
        name, _, value = item.partition("=")
        if name not in choices:
            raise ConfigError(unknown(f"config argument {name!r}", name, choices))
        if choices[name] and value not in choices[name]:
            raise ConfigError(f"config argument {name}={value!r} is not one of: {', '.join(choices[name])}")
        parsed[name] = value
    return parsed
