"""One program for the cells that differ in nothing but rates, decay and seeds, which a program is given as it runs."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxstab.compare.grid import RATE, SEEDS
from jaxstab.config import flatten
from jaxstab.train.config import Config
from jaxstab.train.program import Program, build

GIVEN = (RATE, "optimizer.weight_decay", *SEEDS)  # to a program, as arguments


def shared_keys(config: Config) -> dict[str, Any]:
    """The keys that two configs have to have in common to share a program."""
    return {key: value for key, value in flatten(config).items() if key not in GIVEN}


class Programs:
    """Builds programs, as `train` asks for them; a config that can share the one before it does, and compiles nothing.

    One program is kept: cells that share one are run one after the other, and what is compiled takes memory.
    """

    def __init__(self) -> None:
        self._last: tuple[Any, Program] | None = None

    def __call__(self, config: Config, end: int | None = None) -> Program:
        key = shared_keys(config), end
        if self._last is None or self._last[0] != key:
            self._last = key, build(config, end)
        program = self._last[1]
        return dataclasses.replace(program, setup=dataclasses.replace(program.setup, config=config))
