"""Jacobians of whole blocks against exact ones of a tiny model by NumPy."""

import itertools

import jax
import numpy as np

from jaxstab import initialize
from jaxstab.initialize import he
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import Block, Transformer, read_table, rotary_tables
from jaxstab.train.jacobians import block_jacobians

CONFIG = ModelConfig(width=8, layers=3, heads=2, mlp_width=16, vocabulary=31, max_length=6, remat="none")
TOKENS = np.random.default_rng(0).integers(0, 31, (1, 6)).astype(np.int32)


def test_alignment_and_stable_rank_are_those_of_the_whole_matrices():
    weights = initialize.draw(jax.random.key(1), initialize.scaled(read_table(CONFIG), he()))
    block, rotary = Block(CONFIG), rotary_tables(6, CONFIG.head_dim, CONFIG.rope_theta)
    x, spectra = weights["embed_tokens"]["embedding"][TOKENS], []
    for index in range(CONFIG.layers):
        own = {"params": jax.tree.map(lambda w, index=index: w[index], weights["layers"])}

        def function(x, own=own, index=index):
            return block.apply(own, x, index + 1.0, rotary, None)[0]

        jacobian = np.float64(jax.jit(jax.jacrev(function))(x)).reshape(x.size, x.size)
        spectra.append(np.linalg.svd(jacobian))
        x = function(x)
    measured = jax.jit(lambda weights: block_jacobians(Transformer(CONFIG), weights, TOKENS, iterations=300))(weights)
    rank = [(values**2).sum() / values[0] ** 2 for _, values, _ in spectra]
    np.testing.assert_allclose(measured["jacobian_stable_rank"], rank, rtol=0.35)
    aligned = [abs(after[2][0] @ before[0][:, 0]) for before, after in itertools.pairwise(spectra)]
    np.testing.assert_allclose(measured["jacobian_alignment"], aligned, atol=2e-3)
