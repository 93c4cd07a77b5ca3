"""A reparameterization of a model's table away from where it starts, pulled back in float64."""

import jax
import numpy as np

from jaxstab.initialize import draw
from jaxstab.reparam import reparameterize


def pulled_back(table, method):
    """What is stored, shifted by normal draws; its effective weights; a cotangent of these; and the gradient of it."""
    with jax.enable_x64(True):
        rep = reparameterize(table, method)
        dice = np.random.default_rng(0)
        raw, state = rep.init(jax.tree.map(np.float64, draw(jax.random.key(0), table)))
        raw = jax.tree.map(lambda x: x + dice.normal(size=x.shape), raw)
        weights, pullback = jax.vjp(lambda raw: rep.effective(raw, state)[0], raw)
        cotangent = jax.tree.map(lambda x: dice.normal(size=x.shape), weights)
        (gradient,) = pullback(cotangent)
    return tuple(jax.tree.map(np.asarray, tree) for tree in (raw, weights, cotangent, gradient))
