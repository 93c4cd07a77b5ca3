"""Reparameterizing a Flax NNX module from elsewhere: a small classifier, three lines at the call site.

python examples/reparameterize_nnx.py [wesar|sigma_reparam]
"""

import sys

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxstab import reparam
from jaxstab.table import read


class Classifier(nnx.Module):
    """Any NNX module; jaxstab knows nothing of it."""

    def __init__(self, rngs: nnx.Rngs):
        self.encode = nnx.Linear(32, 64, rngs=rngs)
        self.ln = nnx.LayerNorm(64, rngs=rngs)
        self.mix = nnx.Linear(64, 64, rngs=rngs)
        self.classify = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = self.encode(x)
        return self.classify(x + self.mix(nnx.gelu(self.ln(x))))


# What each parameter is for, by patterns of its path.
ROLES = {
    "encode/kernel": "up_proj",
    "mix/kernel": "down_proj",
    "classify/kernel": "lm_head",
    "ln/scale": "norm",
    "bias": "bias",
}
METHODS = {"wesar": reparam.wesar(sigma=0.02), "sigma_reparam": reparam.sigma_reparam(sigma=0.02)}


def main(method: str = "wesar", steps: int = 200) -> float:
    """Trains on a separable toy problem; returns the last loss."""
    x = jax.random.normal(jax.random.key(0), (512, 32))
    labels = jnp.argmax(x @ jax.random.normal(jax.random.key(1), (32, 10)), axis=-1)
    graph, parameters = nnx.split(Classifier(nnx.Rngs(2)), nnx.Param)
    weights = nnx.to_pure_dict(parameters)

    table = read(weights, ROLES)
    rep = reparam.reparameterize(table, METHODS[method])
    raw, state = rep.init(weights)

    def model(weights):
        nnx.replace_by_pure_dict(parameters, weights)
        return nnx.merge(graph, parameters)

    optimizer = optax.adam(3e-3)
    moments = optimizer.init(raw)

    @jax.jit
    def step(raw, state, moments):
        def loss(raw):
            weights, advanced = rep.effective(raw, state)
            logits = model(weights)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), advanced

        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(raw)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(raw, updates), state, moments, value

    for number in range(steps):
        raw, state, moments, value = step(raw, state, moments)
        if number % 50 == 0:
            print(f"step {number}  loss {value:.4f}")

    merged = model(rep.merge(raw, state))  # a plain module: it runs without jaxstab
    print(f"accuracy {jnp.mean(jnp.argmax(merged(x), -1) == labels):.3f}")
    return float(value)


if __name__ == "__main__":
    main(*sys.argv[1:])
