"""Faults for tests: a batch that carries a mark of one kind is hurt in that way, wherever it is trained on."""

import functools

import jax
import jax.numpy as jnp

from jaxstab.train import objective
from jaxstab.train import step as step_module

KINDS = ("nan_loss", "inf_gradient", "huge_gradient", "matrix")


def install(patch, first_mark):
    """Lets the training step be hurt by batches in which the token `first_mark` + the place of a kind in KINDS occurs.

    Args:
      patch: (object, name, value), as `setattr`.
      first_mark: the lowest of four tokens that occur nowhere else.
    """
    for (module, name), function in hurt_functions(first_mark).items():
        patch(module, name, function)


@functools.cache
def hurt_functions(first_mark):
    """The step's functions with the faults in them; the same ones each time, so that runs can share a program."""
    loss_sums, mean_gradients, step = objective.loss_sums, objective.mean_gradients, step_module.train_step

    def marked(tokens, kind):
        return (tokens == first_mark + KINDS.index(kind)).any()

    def with_loss(setup, weights, tokens, valid=None):
        loss, (sums, maxima) = loss_sums(setup, weights, tokens, valid)
        bad = marked(tokens, "nan_loss")
        spoiled = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), (loss, sums))
        return spoiled[0], (spoiled[1], maxima)

    def with_gradient(setup, weights, tokens, count):
        gradients, sums, maxima = mean_gradients(setup, weights, tokens, count)
        kernel = gradients["layers"]["mlp"]["up_proj"]["kernel"]
        kernel = jnp.where(marked(tokens, "inf_gradient"), kernel.at[-1, 0, 0].set(jnp.inf), kernel)
        gradients["layers"]["mlp"]["up_proj"]["kernel"] = kernel
        huge = jax.tree.map(lambda x: jnp.where(marked(tokens, "huge_gradient"), 1e6 * x, x), gradients)
        return huge, sums, maxima

    def with_weights(setup, state, tokens, hypers):
        factor = jnp.where(marked(tokens, "matrix"), 100.0, 1.0)
        head = jax.tree.map(lambda x: factor * x, state.raw["lm_head"])  # its gate, too, where it has one
        return step(setup, state._replace(raw=state.raw | {"lm_head": head}), tokens, hypers)

    return {
        (objective, "loss_sums"): with_loss,
        (objective, "mean_gradients"): with_gradient,
        (step_module, "train_step"): with_weights,
    }
