"""Searches of initial scales against their authors' algorithms in PyTorch, whose derivatives are double backwards."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxstab.search import Problem, gradinit, metainit, nio
from jaxstab.table import read

VOCABULARY, WIDTH, MLP = 7, 4, 6
SHAPES = {"embed": (VOCABULARY, WIDTH), "up": (WIDTH, MLP), "down": (MLP, WIDTH), "head": (WIDTH, VOCABULARY)}
ROLES = {"embed": "embed_tokens", "up": "up_proj", "down": "down_proj", "head": "lm_head", "gain": "norm"}
STEPS = 12
DICE = np.random.default_rng(1)
BATCHES = DICE.integers(0, VOCABULARY, (STEPS + 1, 4, 2))


def drawn():
    return {name: DICE.normal(size=shape) * 0.8 for name, shape in SHAPES.items()} | {"gain": np.ones(WIDTH)}


def problem_of(weights):
    def loss(weights, tokens):
        x = weights["embed"][tokens[:, 0]]
        x = x + jnp.tanh(weights["gain"] * x @ weights["up"]) @ weights["down"]
        log_p = jax.nn.log_softmax(x @ weights["head"])
        return -jnp.mean(log_p[jnp.arange(len(tokens)), tokens[:, 1]])

    shapes = {name: jax.ShapeDtypeStruct(array.shape, jnp.float64) for name, array in weights.items()}
    return Problem(read(shapes, ROLES), jax.tree.map(jnp.asarray, weights), jax.grad(loss))


def torch_loss(weights, tokens):
    tokens = torch.tensor(tokens)
    x = weights["embed"][tokens[:, 0]]
    x = x + torch.tanh(weights["gain"] * x @ weights["up"]) @ weights["down"]
    return torch.nn.functional.cross_entropy(x @ weights["head"], tokens[:, 1])


def found(search, problem):
    factors = problem.ones()
    state = search.start(factors)
    update = jax.jit(functools.partial(search.update, problem))
    for tokens, following in itertools.pairwise(BATCHES):
        factors, state, _ = update(factors, state, tokens, following)
    return factors


def theirs(weights):
    return {name: torch.tensor(array, requires_grad=True) for name, array in weights.items()}


def assert_scales(factors, weights, parameters):
    for name, factor in factors.items():
        ratio = (parameters[name] / torch.tensor(weights[name])).detach().numpy()
        np.testing.assert_allclose(ratio, np.full(ratio.shape, factor), rtol=1e-9, err_msg=name)
    assert max(abs(float(factor) - 1) for factor in factors.values()) > 0.005


def test_metainit():
    """Listing 1 of Dauphin and Schoenholz 2019: signs of the norms' slopes, with momentum."""
    weights, eps, rate, momentum = drawn(), 1e-5, 0.02, 0.9
    parameters = theirs(weights)
    memory = dict.fromkeys(SHAPES, 0.0)
    for tokens in BATCHES[:STEPS]:
        leaves = list(parameters.values())
        gradients = torch.autograd.grad(torch_loss(parameters, tokens), leaves, create_graph=True)
        half_square = sum((g**2).sum() / 2 for g in gradients)
        products = torch.autograd.grad(half_square, leaves, create_graph=True)
        quotient = sum(
            ((g - h) / (g + eps * (2 * (g >= 0).double() - 1)) - 1).abs().sum()
            for g, h in zip(gradients, products, strict=True)
        ) / sum(leaf.numel() for leaf in leaves)
        slopes = dict(zip(parameters, torch.autograd.grad(quotient, leaves), strict=True))
        with torch.no_grad():
            for name in SHAPES:
                matrix, norm = parameters[name], parameters[name].norm()
                memory[name] = momentum * memory[name] - rate * torch.sign((matrix * slopes[name]).sum() / norm)
                matrix *= (norm + memory[name]) / norm
    with jax.enable_x64(True):
        factors = found(metainit(learning_rate=rate, momentum=momentum, eps=eps), problem_of(weights))
    assert_scales(factors, weights, parameters)


def median_norm(weights, ord):
    """The median over batches of the gradient's norm."""
    norms = []
    for tokens in BATCHES:
        now = theirs(weights)
        gradients = torch.autograd.grad(torch_loss(now, tokens), list(now.values()))
        norms.append(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]), ord).item())
    return float(np.median(norms))


def descend(objective, alphas, adam, clip):
    """A step of Adam down an objective, by clipped slopes; no factor falls below 0.01."""
    for alpha, slope in zip(alphas, torch.autograd.grad(objective, alphas), strict=True):
        alpha.grad = slope.clamp(-clip, clip)
    adam.step()
    with torch.no_grad():
        for alpha in alphas:
            alpha.clamp_(min=0.01)


@pytest.mark.parametrize(("rule", "bounded"), [("adam", False), ("adam", True), ("sgd", True)])
def test_gradinit(rule, bounded):
    """Algorithm 1 of Zhu et al. 2021, with PyTorch's Adam on the factors, one for the loss and one for the bound."""
    weights, rate, step, clip = drawn(), 0.01, 0.05, 1.0
    gamma = median_norm(weights, 1 if rule == "adam" else 2) if bounded else 0.0
    base, alphas = theirs(weights), {name: torch.ones((), dtype=torch.float64, requires_grad=True) for name in SHAPES}
    adams = [torch.optim.Adam(alphas.values(), lr=rate, betas=(0.9, 0.98)) for _ in range(2)]
    exceeded = 0
    for tokens, following in itertools.pairwise(BATCHES):
        now = {name: base[name].detach() * alphas.get(name, 1.0) for name in base}
        now["gain"].requires_grad_()
        gradients = torch.autograd.grad(torch_loss(now, tokens), list(now.values()), create_graph=True)
        norm = sum(g.abs().sum() for g in gradients) if rule == "adam" else sum((g**2).sum() for g in gradients).sqrt()
        is_constraint = bool(gamma) and norm.item() > gamma
        exceeded += is_constraint
        if is_constraint:
            objective = norm
        else:
            directions = [g.sign() if rule == "adam" else g / norm for g in gradients]
            after = {
                name: now[name] - step * direction.detach() for name, direction in zip(now, directions, strict=True)
            }
            mixed = np.where(np.arange(len(tokens))[:, None] % 2 == 0, tokens, following)
            objective = torch_loss(after, mixed) / step
        descend(objective, list(alphas.values()), adams[is_constraint], clip)
    assert bounded == (0 < exceeded < STEPS), f"{exceeded} of {STEPS} steps exceed the bound"
    search = gradinit(learning_rate=rate, b2=0.98, rule=rule, step=step, gamma=gamma, clip=clip)
    with jax.enable_x64(True):
        factors = found(search, problem_of(weights))
    assert_scales(factors, weights, {name: torch.tensor(weights[name]) * alphas[name] for name in SHAPES})


@pytest.mark.parametrize("factor", [10.0, 1.0])
def test_nio(factor):
    """The algorithm of Yang et al. 2022: cosines and norms of the gradients of two parts of a batch."""
    weights, rate, clip, norm_weight = drawn(), 0.01, 0.5, 0.7
    gamma = factor * 1.2 * median_norm(weights, 2)  # of half a batch
    base, alphas = theirs(weights), {name: torch.ones((), dtype=torch.float64, requires_grad=True) for name in SHAPES}
    adams = [torch.optim.Adam(alphas.values(), lr=rate) for _ in range(2)]
    exceeded = 0
    for tokens in BATCHES[:STEPS]:
        now = {name: base[name].detach() * alphas.get(name, 1.0) for name in base}
        now["gain"].requires_grad_()
        losses = [torch_loss(now, tokens[part::2]) for part in range(2)]
        parts = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(now.values()), create_graph=True)])
            for loss in losses
        ]
        norms = torch.stack([part.norm() for part in parts])
        is_constraint = norms.mean().item() > gamma
        exceeded += is_constraint
        cosine = torch.nn.functional.cosine_similarity(*parts, dim=0)
        objective = norms.mean() if is_constraint else -cosine - norm_weight * norms.sum()
        descend(objective, list(alphas.values()), adams[is_constraint], clip)
    assert exceeded == 0 if factor > 1 else 0 < exceeded < STEPS, f"{exceeded} of {STEPS} steps exceed the bound"
    search = nio(learning_rate=rate, parts=2, gamma=gamma, norm_weight=norm_weight, clip=clip)
    with jax.enable_x64(True):
        factors = found(search, problem_of(weights))
    assert_scales(factors, weights, {name: torch.tensor(weights[name]) * alphas[name] for name in SHAPES})
