"""Runs of one program whose steps are taken as one, vectorised.

Each run is an ordinary `train` in a thread of its own, which keeps its place in the loop; what it does beside its steps
(data, evaluation, checkpoints, incidents, roll-backs) is its own business. Of these threads one works at a time, so
that nothing else than the step has to know of the others: it goes on until its next step, and waits there until all
have come. What is left of the time of a step beside the device's is therefore that of all the runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab import scale
from jaxstab.train.packed import Packed
from jaxstab.train.program import Program, packed_step
from jaxstab.train.state import TrainState

# (states, tokens [B, T+1] of each, hypers of each) -> (states, measurements of each); donates the states
Joint = Callable[..., tuple[tuple[TrainState, ...], tuple[Packed, ...]]]


def joint_step(program: Program, count: int) -> Joint:
    """A step of `count` runs of a program: what `program.step` takes and gives, a tuple of each."""
    mesh = program.setup.mesh
    shardings = (jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state),) * count
    rows, whole = scale.batch_sharding(mesh), scale.replicated(mesh)
    vectorised = jax.vmap(functools.partial(packed_step, program.setup))

    def step(*given: Sequence[Any]) -> Any:
        stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) for each in given]
        return tuple(_apart(each, count) for each in vectorised(*stacked))

    return jax.jit(
        scale.on_mesh(mesh, step),
        in_shardings=(shardings, rows, whole),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )


def _apart(stacked: Any, count: int) -> tuple[Any, ...]:
    """The slices along a tree's leading axis."""
    return tuple(jax.tree.map(lambda leaf, number=number: leaf[number], stacked) for number in range(count))


class Lockstep:
    """Takes the steps of several runs together, when each of them has come to its next one or has left."""

    def __init__(self, alone: Callable[..., Any], joint: Joint, count: int, ratio: float, members: int):
        """A lockstep that nobody has come to yet.

        Args:
          alone: the step of one run.
          joint: that of `count` runs.
          count: places in the joint step.
          ratio: the time of a joint step over that of `count` steps alone: with so few runs that these are faster,
            they step alone.
          members: runs that take part, at most `count`.
        """
        self._alone, self._joint, self._count, self._ratio, self._live = alone, joint, count, ratio, members
        self._turn = threading.Condition()  # whose lock the thread at work holds
        self._given: dict[int, tuple[Any, ...]] = {}  # by member
        self._results: dict[int, Any] = {}
        self._fillers: list[TrainState] = []  # in the places of those that left

    @contextlib.contextmanager
    def member(self, number: int) -> Iterator[Callable[[Program], Program]]:
        """Takes part in it; what is yielded gives a program the step that waits for the others."""
        with self._turn:
            try:
                yield lambda program: dataclasses.replace(program, step=functools.partial(self._step, number))
            finally:
                self._live -= 1
                self._take_if_all_wait()

    def _step(self, number: int, *given: Any) -> tuple[TrainState, Packed]:
        self._given[number] = given
        self._take_if_all_wait()
        self._turn.wait_for(lambda: number in self._results)
        result = self._results.pop(number)
        if isinstance(result, Exception):
            raise result
        return result

    def _take_if_all_wait(self) -> None:
        if not self._given or len(self._given) < self._live:
            return
        numbers, given = list(self._given), list(self._given.values())
        self._given.clear()
        try:
            results = self._together(given) if self._pays(given) else [self._alone(*each) for each in given]
        except Exception as error:  # whatever it is, all of them wait for an answer
            results = [error] * len(numbers)
        self._results.update(zip(numbers, results, strict=True))
        self._turn.notify_all()

    def _pays(self, given: Sequence[tuple[Any, ...]]) -> bool:
        """Whether the joint step is the faster way, and possible: a run that rolled back may be at another length."""
        lengths = {tokens.shape for _, tokens, _ in given}
        return len(given) > self._ratio * self._count and len(lengths) == 1

    def _together(self, given: Sequence[tuple[Any, ...]]) -> list[Any]:
        states, tokens, hypers = zip(*given, strict=True)
        absent = self._count - len(given)
        while len(self._fillers) < absent:
            self._fillers.append(jax.tree.map(jnp.copy, states[0]))
        all_states, all_packed = self._joint(
            (*states, *self._fillers), tokens + tokens[:1] * absent, hypers + hypers[:1] * absent
        )
        self._fillers = list(all_states[len(given) :])
        return list(zip(all_states, all_packed, strict=True))[: len(given)]
