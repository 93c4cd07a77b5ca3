"""The search of initial scales that a run begins with: on its first batches, over its mesh."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int
from rich.console import Console

from jaxstab import initialize, scale
from jaxstab.config import UserError
from jaxstab.logging.console import say, shown
from jaxstab.search import Factors, Problem, Search
from jaxstab.table import Gradients, Weights
from jaxstab.train import objective
from jaxstab.train.setup import Setup
from jaxstab.train.state import TrainState, given_state, init_state, state_shardings


def searched(
    setup: Setup, search: Search, batches: Iterator[Int[Array, "B T+1"]], console: Console | None = None
) -> TrainState:
    """The state before the first step, by the scales that a search comes to.

    It is a function of the config and the data: a run that is killed before it is saved searches again, to the same
    end. Products with a Hessian need plain products in attention and, to mean something, float32.

    Args:
      setup: of the run.
      search: what is done.
      batches: of the first steps, on the devices.
      console: is told ahead what is done, how far it is, and what it has cost.

    Raises:
      UserError: the search has left the finite numbers.
    """
    console, method = console or Console(quiet=True), setup.config.init_search.method
    say(
        console,
        f"Searching initial scales: {search.iterations} iterations of {method}, each at the cost of at most "
        f"{search.gradients} gradients of a batch. Compiling ...",
    )
    setup, began = setup.with_model(dtype="float32", attention="chunked"), time.monotonic()
    factors, readings = _factors(setup, search, batches, console)
    values = np.concatenate([np.ravel(factor) for factor in scale.fetch(factors).values()])
    if not np.isfinite([*values, *readings]).all():
        raise UserError(
            f"init_search.method={method} has left the finite numbers: take a smaller "
            f"init_search.{method}.learning_rate, or an init.method of smaller values"
        )
    say(
        console,
        f"Searched in {time.monotonic() - began:.1f} s (at most {search.iterations * search.gradients} gradients): "
        f"{search.reading} {readings[0]:.4g} -> {readings[-1]:.4g}, factors {values.min():.3g} to {values.max():.3g}.",
    )
    return _begun(setup, factors)


def _factors(setup: Setup, search: Search, batches: Iterator[Array], console: Console) -> tuple[Factors, list[float]]:
    """The factors after the last iteration, and the readings of the first and the last."""
    weights = _jitted(setup, _first_weights, out_shardings=setup.weight_shardings)(setup.config.train.seed)
    whole = scale.replicated(setup.mesh)
    factors, state = _jitted(setup, functools.partial(_start, search=search), out_shardings=whole)(weights)
    advance = _jitted(setup, functools.partial(_advance, search=search), out_shardings=whole)
    readings: list[float] = []
    following = next(batches)
    for _ in shown(console, "search")(range(search.iterations)):
        tokens, following = following, next(batches)
        factors, state, reading = advance(weights, factors, state, tokens, following)
        readings = [*readings[:1], float(reading)]
    return factors, readings


def _jitted(setup: Setup, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return jax.jit(scale.on_mesh(setup.mesh, functools.partial(function, setup)), **options)


def _first_weights(setup: Setup, seed: Any) -> Weights:
    """The effective weights that a run of this seed would begin with."""
    state = init_state(setup, seed)
    return setup.reparam.merge(state.raw, state.reparam)


def problem_of(setup: Setup, weights: Weights) -> Problem:
    """The loss of a run as a search sees it."""

    def gradient(weights: Weights, tokens_BS: Int[Array, "B T+1"]) -> Gradients:
        options = setup.config.train
        count = objective.least_count(len(tokens_BS), options.batch_size // options.accumulation)
        return objective.mean_gradients(setup, weights, tokens_BS, count)[0]

    return Problem(setup.table, weights, gradient)


def _start(setup: Setup, weights: Weights, search: Search) -> tuple[Factors, Any]:
    factors = problem_of(setup, weights).ones()
    return factors, search.start(factors)


def _advance(
    setup: Setup, weights: Weights, factors: Factors, state: Any, tokens: Array, following: Array, search: Search
) -> tuple[Factors, Any, Array]:
    return search.update(problem_of(setup, weights), factors, state, tokens, following)


def _begun(setup: Setup, factors: Factors) -> TrainState:
    """The state that begins with the drawn weights times these factors."""

    def begin(setup: Setup, factors: Factors) -> TrainState:
        drawn = initialize.draw(jax.random.key(setup.config.train.seed), setup.table)
        return given_state(setup, problem_of(setup, drawn).scaled(factors))

    shardings = state_shardings(setup, jax.eval_shape(functools.partial(begin, setup), factors))
    return _jitted(setup, begin, out_shardings=shardings)(factors)
