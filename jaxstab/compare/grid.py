"""The grid of a comparison: methods, learning rates, seeds and whatever else is varied."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxstab.config import ConfigError, flatten, from_flat, unchosen, unknown
from jaxstab.train.config import Config, check

Overrides = Mapping[str, Any]  # {key of the config: value}
RATE = "optimizer.learning_rate"
SEEDS = ("train.seed", "data.seed")  # those that a cell's seed sets: one seed, one draw of weights and order of batches


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
      method, learning_rate, seed: where it stands in the grid.
      varied: the other keys and their values.
      config: of the run.
    """

    method: str
    learning_rate: float
    seed: int
    varied: tuple[tuple[str, Any], ...]
    config: Config

    @property
    def name(self) -> str:
        """The name of its directory."""
        parts = [self.method, f"{self.learning_rate:g}", f"seed{self.seed}", *map(_text, self.varied)]
        return "-".join(parts).replace("/", "_")

    @property
    def variant(self) -> str:
        """What is compared: the method, with what else is varied."""
        return ", ".join([self.method, *map(_text, self.varied)])


def _text(varied: tuple[str, Any]) -> str:
    key, value = varied
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cells of a comparison; the first method is the baseline."""

    cells: tuple[Cell, ...]


def read_grid(
    config: Config,
    known: Mapping[str, Overrides],
    methods: Sequence[str],
    learning_rates: Sequence[str],
    seeds: Sequence[str],
    vary: Sequence[str] = (),
) -> Grid:
    """The grid that a command line asks for.

    Args:
      config: what all cells share.
      known: overrides of every method that has a name.
      methods: names among them, the baseline first.
      learning_rates: peak rates; none for the config's.
      seeds: integers; none for the config's.
      vary: "key=value,value,...", each an axis of the grid.

    Raises:
      ConfigError: a name, key or value that can't be used, or a combination that no run can have.
    """
    for name in methods:
        if name not in known:
            raise ConfigError(unknown(f"method {name!r} in --methods", name, known))
    rates = [_number("learning_rates", text, float) for text in learning_rates] or [config.optimizer.learning_rate]
    numbers = [_number("seeds", text, int) for text in seeds] or [config.train.seed]
    if min(numbers) < 0:
        raise ConfigError(f"--seeds takes integers from 0 on, not {min(numbers)}")
    axes = _axes(flatten(config), vary)
    cells = [
        _cell(config, method, known[method], rate, seed, varied)
        for method in methods
        for varied in itertools.product(*axes)
        for rate in rates
        for seed in numbers
    ]
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"the grid has {twice} twice; name every method, rate, seed and value once")
    return Grid(tuple(cells))


def _number(flag: str, text: str, kind: type) -> Any:
    try:
        number = kind(text)
    except ValueError as error:
        numbers = {int: "integers", float: "numbers"}[kind]
        raise ConfigError(f"--{flag} takes {numbers} with commas between them, not {text!r}") from error
    if kind is float and not math.isfinite(number):
        raise ConfigError(f"--{flag} takes finite numbers, not {text!r}")
    return number


def _axes(flat: Mapping[str, Any], vary: Sequence[str]) -> list[list[tuple[str, Any]]]:
    """The keys and values of `--vary`, an axis for each time that it is given."""
    axes = [_axis(flat, axis) for axis in vary]
    keys = [axis[0][0] for axis in axes]
    for key in keys:
        if key in (RATE, *SEEDS):
            raise ConfigError(f"--vary={key}: rates and seeds are --learning_rates and --seeds")
        if keys.count(key) > 1:
            raise ConfigError(f"--vary={key} is given twice; give all its values at once, with commas between them")
    return axes


def _axis(flat: Mapping[str, Any], axis: str) -> list[tuple[str, Any]]:
    key, _, given = axis.partition("=")
    if not given:
        raise ConfigError(f"--vary={axis} lacks its values: for instance --vary=optimizer.weight_decay=0.01,0.1")
    if key not in flat:
        raise ConfigError(unknown(f"config key {key} in --vary", key, flat))
    values = [_typed(flat, key, text.strip()) for text in given.split(",")]
    if any(values.count(value) > 1 for value in values):
        raise ConfigError(f"--vary={axis} has a value twice")
    return [(key, value) for value in values]


def _cell(
    config: Config, method: str, overrides: Overrides, rate: float, seed: int, varied: tuple[tuple[str, Any], ...]
) -> Cell:
    flat = flatten(config)
    values = {**overrides, RATE: rate, **dict.fromkeys(SEEDS, seed), **dict(varied)}
    for key in values:
        if key not in flat:
            raise ConfigError(unknown(f"config key {key} of {method}", key, flat))
    try:
        resolved = from_flat(Config, flat | values)
        check(resolved)
    except ConfigError as error:
        raise ConfigError(f"{method} can't be run with this config: {error}") from error
    idle = unchosen(flatten(resolved))
    for key, _ in varied:
        if key in idle:
            raise ConfigError(
                f"--vary={key} has no effect on {method}; give the methods that it is about a command of their own, "
                "with the same --workdir"
            )
    return Cell(method, rate, seed, varied, resolved)


def _typed(flat: Mapping[str, Any], key: str, text: str) -> Any:
    """A value given as text: a string where the key has one, and else what Python reads in it."""
    if isinstance(flat.get(key), str):
        return text
    try:
        value = ast.literal_eval(text)
        return float(value) if isinstance(flat.get(key), float) and type(value) is int else value
    except (ValueError, SyntaxError) as error:
        raise ConfigError(
            f"--vary={key}={text} is no value of that key: it takes numbers, True and False with commas between them"
        ) from error
