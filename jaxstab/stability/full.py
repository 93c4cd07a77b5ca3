"""What is measured of the weights alone, now and then. What needs gradients stands in `gradients`."""

from __future__ import annotations

import jax

from jaxstab.stability.spectra import spectral_norm, stable_rank
from jaxstab.stability.tev import tev_histogram, token_variabilities
from jaxstab.table import Effective, Row, Table, Weights, by_role


def weight_statistics(table: Table[Effective], weights: Weights) -> dict[str, jax.Array]:
    """Spectra and token variability of the effective weights.

    - spectral_norm, stable_rank: see the functions of these names
    - tev_histogram, tev_histogram_edges: see `tev_histogram`, of embed_tokens and lm_head

    Returns:
      {"stability/<measurement>/<role>": value}, float32; `[L]` for stacked roles and scalar for the others, vectors for
      the histograms.
    """
    histograms = {role: tev_histogram(each) for role, each in token_variabilities(table, weights).items()}
    spectra = by_role(_spectrum, table, weights)
    statistics = {
        "spectral_norm": {role: largest for role, (largest, _) in spectra.items()},
        "stable_rank": {role: rank for role, (_, rank) in spectra.items()},
        "tev_histogram": {role: counts for role, (counts, _) in histograms.items()},
        "tev_histogram_edges": {role: edges for role, (_, edges) in histograms.items()},
    }
    return {f"stability/{name}/{role}": value for name, by in statistics.items() for role, value in by.items()}


def _spectrum(row: Row, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    largest = spectral_norm(row, weight)
    return largest, stable_rank(row, weight, largest)
