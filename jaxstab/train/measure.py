"""The full measurements: at a cadence, of the state before a step, in passes of their own."""

from __future__ import annotations

from jaxtyping import Array, Int

from jaxstab import stability
from jaxstab.optimize import Hypers
from jaxstab.table import Gradients
from jaxstab.train import instruments, objective
from jaxstab.train.packed import Measurements, scalars_and_vectors
from jaxstab.train.probe import probe
from jaxstab.train.setup import Setup
from jaxstab.train.state import TrainState

PROBE_ROWS = 4  # sequences that go through the reference attention, or as many as a micro-batch has
MOST_PARTS = 8  # parts of a batch whose gradients are compared


def measure(setup: Setup, state: TrainState, tokens_BS: Int[Array, "B T+1"], hypers: Hypers) -> Measurements:
    """Statistics of the weights, of a probe batch, of the gradients of parts of the batch, and the chosen instruments.

    The hyper-parameters are those of the step that the state is about to take.
    """
    weights = setup.reparam.merge(state.raw, state.reparam)
    rows, accumulation = len(tokens_BS), setup.config.train.accumulation
    probed_BT = tokens_BS[: min(PROBE_ROWS, rows // accumulation), :-1]
    statistics = stability.weight_statistics(setup.table, weights)
    statistics |= stability.gate_statistics(stability.gates(setup.table, setup.stored_table, state.raw))
    statistics |= probe(setup.model, weights, probed_BT, objective.segments(setup, probed_BT))
    parts = next((parts for parts in range(min(MOST_PARTS, rows), 1, -1) if rows % parts == 0), 1)
    if parts > 1:
        count = objective.least_count(rows // parts, rows // accumulation)

        def gradient(tokens: Array) -> Gradients:
            return objective.mean_gradients(setup, weights, tokens, count)[0]

        micro_batches = objective.micro_batches(tokens_BS, parts)
        statistics |= stability.gradient_statistics(setup.table, gradient, micro_batches, rows // parts)
    statistics |= instruments.measured(setup, state, tokens_BS, hypers)
    return scalars_and_vectors(statistics)
