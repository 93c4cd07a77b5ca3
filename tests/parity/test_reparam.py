"""weight_norm and sigma_reparam against torch.nn.utils.parametrizations, over updates, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.reparam import reparameterize, sigma_reparam, weight_norm
from jaxstab.table import Row

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
parametrizations = torch.nn.utils.parametrizations

TABLE = {
    "up": Row("up", "up_proj", (3, 5, 7), (None,) * 3, True, std=0.5),
    "head": Row("head", "lm_head", (5, 11), (None,) * 2, False, std=0.5),
    "embed": Row("embed", "embed_tokens", (11, 5), (None,) * 2, False, std=1.0),
}
RATE, STEPS = 0.1, 4


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=row.shape) * row.std for name, row in TABLE.items()}


def layers(tree):
    """{(name, layer): one matrix and what goes with it}."""
    found = {}
    for name, row in TABLE.items():
        for layer in range(row.layers or 1):
            found[name, layer] = jax.tree.map(lambda x, i=layer, r=row: np.array(x[i] if r.stacked else x), tree[name])
    return found


def train(method):
    """Raw parameters, effective weights and raw gradients of every step of gradient descent on a given linear loss."""
    with jax.enable_x64(True):
        rep = reparameterize(TABLE, method)
        raw, state = rep.init(jax.tree.map(jnp.asarray, draw(0)))
        start, steps = (layers(raw), layers(state[0]) if jax.tree.leaves(state) else {}), []
        for step in range(STEPS):
            weights, pullback, state = jax.vjp(lambda raw, s=state: rep.effective(raw, s), raw, has_aux=True)
            (gradient,) = pullback(jax.tree.map(jnp.asarray, draw(1 + step)))
            steps.append((layers(weights), layers(gradient)))
            raw = jax.tree.map(lambda x, g: x - RATE * g, raw, gradient)
    return start, steps


def module_of(name, weight):
    """An nn.Linear, whose weight is the transpose of ours, or an nn.Embedding, whose weight is ours."""
    if name == "embed":
        return torch.nn.Embedding(*weight.shape, dtype=torch.float64)
    return torch.nn.Linear(*weight.shape, bias=False, dtype=torch.float64)


def tensor(name, array):
    return torch.tensor(array if name == "embed" else np.swapaxes(array, -1, -2))


def check(found, expected, name):
    expected = expected.detach().numpy()
    np.testing.assert_allclose(found, expected if name == "embed" else expected.T, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("embedding", "dim"), [("token", 0), ("feature", 1)])
def test_weight_norm_is_pytorchs(embedding, dim):
    (start, _), steps = train(weight_norm(sigma=1.0, embedding=embedding))
    for (name, layer), stored in start.items():
        kept = dim if name == "embed" else 0
        module = parametrizations.weight_norm(module_of(name, stored["weight"]), dim=kept)
        gate, weight = module.parametrizations.weight.original0, module.parametrizations.weight.original1
        with torch.no_grad():
            gate.copy_(torch.tensor(np.expand_dims(stored["gate"], 1 - kept)))
            weight.copy_(tensor(name, stored["weight"]))
        for step, (weights, gradients) in enumerate(steps):
            used = module.weight
            check(weights[name, layer], used, name)
            gate.grad = weight.grad = None
            torch.sum(used * tensor(name, layers(draw(1 + step))[name, layer])).backward()
            check(gradients[name, layer]["weight"], weight.grad, name)
            np.testing.assert_allclose(gradients[name, layer]["gate"], gate.grad.squeeze(1 - kept), rtol=1e-8)
            with torch.no_grad():
                gate -= RATE * gate.grad
                weight -= RATE * weight.grad


def test_sigma_reparam_is_pytorchs_spectral_norm_times_a_gate():
    (start, vectors), steps = train(sigma_reparam(sigma=1.0, iterations=2))
    for (name, layer), stored in start.items():
        dim = 1 if name == "embed" else 0  # ours keeps the vector on the side of the input
        module = parametrizations.spectral_norm(module_of(name, stored["weight"]), eps=1e-12, dim=dim)
        weight, gate = module.parametrizations.weight.original, torch.tensor(stored["gate"], requires_grad=True)
        with torch.no_grad():
            weight.copy_(tensor(name, stored["weight"]))
            module.parametrizations.weight[0]._v.copy_(torch.tensor(vectors[name, layer]))
        for step, (weights, gradients) in enumerate(steps):
            used = gate * module.weight
            check(weights[name, layer], used, name)
            gate.grad = weight.grad = None
            torch.sum(used * tensor(name, layers(draw(1 + step))[name, layer])).backward()
            check(gradients[name, layer]["weight"], weight.grad, name)
            np.testing.assert_allclose(gradients[name, layer]["gate"], gate.grad, rtol=1e-8)
            with torch.no_grad():
                gate -= RATE * gate.grad
                weight -= RATE * weight.grad
