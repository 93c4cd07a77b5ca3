"""The full measurements: at a cadence, of the state before a step, in passes of their own."""

from __future__ import annotations

from jaxtyping import Array, Int

from jaxstab import stability
from jaxstab.table import Gradients
from jaxstab.train import objective
from jaxstab.train.probe import probe
from jaxstab.train.setup import Setup
from jaxstab.train.state import TrainState

PROBE_ROWS = 4  # sequences that go through the reference attention, or as many as a micro-batch has
MOST_PARTS = 8  # parts of a batch whose gradients are compared

Measurements = tuple[dict[str, Array], dict[str, Array]]  # scalars, and vectors over layers, by name


def measure(setup: Setup, state: TrainState, tokens_BS: Int[Array, "B T+1"]) -> Measurements:
    """Statistics of the weights, of a probe batch, and of the gradients of parts of the batch."""
    weights = setup.reparam.merge(state.raw, state.reparam)
    rows, accumulation = len(tokens_BS), setup.config.train.accumulation
    probed_BT = tokens_BS[: min(PROBE_ROWS, rows // accumulation), :-1]
    statistics = stability.weight_statistics(setup.table, weights)
    statistics |= probe(setup.model, weights, probed_BT, objective.segments(setup, probed_BT))
    parts = next((parts for parts in range(min(MOST_PARTS, rows), 1, -1) if rows % parts == 0), 1)
    if parts > 1:
        count = objective.least_count(rows // parts, rows // accumulation)

        def gradient(tokens: Array) -> Gradients:
            return objective.mean_gradients(setup, weights, tokens, count)[0]

        micro_batches = objective.micro_batches(tokens_BS, parts)
        statistics |= stability.gradient_statistics(setup.table, gradient, micro_batches, rows // parts)
    return scalars_and_vectors(statistics)


def scalars_and_vectors(statistics: dict[str, Array]) -> Measurements:
    """Tells scalars from vectors over layers."""
    scalars = {name: value for name, value in statistics.items() if not value.ndim}
    return scalars, {name: value for name, value in statistics.items() if value.ndim}
