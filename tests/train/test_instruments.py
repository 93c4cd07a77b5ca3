"""Instruments against a Hessian that is written out, of a loss by optax, and the steps that the program takes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import eigsh

from jaxstab import scale
from jaxstab.config import ConfigError
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import Transformer
from jaxstab.stability import StabilityConfig
from jaxstab.stability.config import INSTRUMENTS
from jaxstab.train import instruments
from jaxstab.train.config import Config
from jaxstab.train.packed import scalars_and_vectors
from jaxstab.train.program import build
from jaxstab.train.step_io import hypers

BASE = Config()
BASE = dataclasses.replace(
    BASE,
    model=ModelConfig(width=4, layers=2, heads=2, kv_heads=1, mlp_width=8, vocabulary=11, max_length=6, remat="none"),
    reparam=dataclasses.replace(BASE.reparam, method="wesar"),
    data=dataclasses.replace(BASE.data, length=6),
    train=dataclasses.replace(BASE.train, batch_size=8, accumulation=2, steps=10, loss_chunk=4),
    optimizer=dataclasses.replace(BASE.optimizer, warmup=2, learning_rate=0.01),
    stability=dataclasses.replace(BASE.stability, measure="full", instruments=INSTRUMENTS),
)
EIGHT = scale.MeshConfig(replica=2, fsdp=2, sequence=2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (8, 7)), jnp.int32)


def with_rule(rule, config=BASE):
    chosen = dataclasses.replace(config.optimizer.rule, method=rule)
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, rule=chosen))


def after_two_steps(program):
    """The state that is about to take its third step, and that step's hyper-parameters."""
    given, state = hypers(program), program.init(0)
    for position in range(2):
        state, _ = program.step(state, TOKENS, given._replace(position=jnp.int32(position)))
    return state, given._replace(position=jnp.int32(2))


def measured(program, state, given):
    function = scale.on_mesh(program.setup.mesh, functools.partial(instruments.measured, program.setup))
    statistics = jax.jit(function)(state, TOKENS, given)
    return scalars_and_vectors({name.removeprefix("stability/"): np.asarray(x) for name, x in statistics.items()})


def entropies_of_change(program, before, after):
    """Of the singular values of the change of W_q W_kᵀ, `[H][L]`; two heads of queries read one of keys."""
    changes = []
    for state in (after, before):
        layers = program.merge(state)["layers"]["self_attn"]
        q, k = (np.float64(layers[name]["kernel"]) for name in ("q_proj", "k_proj"))
        changes.append([q[:, :, 2 * head : 2 * head + 2] @ k.swapaxes(1, 2) for head in range(2)])
    values = np.linalg.svd(np.subtract(*changes), compute_uv=False)
    return scipy.stats.entropy(values, axis=-1)


def written_out(program, state):
    """The mean loss as a function of one vector, its gradient and its Hessian, all of optax and of reference code."""
    setup, (start, tree_of) = program.setup, ravel_pytree(state.raw)
    model = Transformer(dataclasses.replace(setup.model.config, attention="xla"))

    def loss(vector):
        logits = model.apply({"params": setup.reparam.merge(tree_of(vector), state.reparam)}, TOKENS[:, :-1])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:])
        return jnp.mean(entropy + BASE.train.z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2)

    def column(tangent):
        return jax.jvp(jax.grad(loss), (start,), (tangent,))[1]

    hessian = jax.jit(lambda: jax.lax.map(column, jnp.eye(start.size), batch_size=64))()
    return loss, np.float64(start), np.float64(jax.grad(loss)(start)), np.float64(hessian)


def test_every_instrument_has_a_name_and_every_name_an_instrument():
    assert tuple(instruments.BY_NAME) == INSTRUMENTS


@pytest.mark.slow
def test_instruments_are_those_of_the_hessian_that_is_written_out():
    program = build(BASE)
    state, given = after_two_steps(program)
    state = jax.device_get(state)
    results, vectors = measured(program, state, given)
    loss, start, g, hessian = written_out(program, state)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-4 * np.abs(hessian).max())
    after, _ = program.step(state, TOKENS, given)
    u = np.float64(ravel_pytree(after.raw)[0]) - start

    np.testing.assert_allclose(results["curvature/gradient"], g @ hessian @ g / (g @ g), rtol=1e-3)
    np.testing.assert_allclose(results["curvature/update"], u @ hessian @ u / (u @ u), rtol=1e-2)

    nu = np.float64(ravel_pytree(optax.tree.get(after.optimizer, "nu"))[0])
    multipliers = jax.tree.map(lambda row: jnp.full(row.shape, row.eps / row.learning_rate), program.setup.stored_table)
    p = (1 - 0.9**3) * np.float64(ravel_pytree(multipliers)[0]) * (np.sqrt(nu / (1 - 0.95**3)) + 1e-8)
    expected = (g / p) @ hessian @ g / (g @ g)
    np.testing.assert_allclose(results["curvature/preconditioned"], expected, rtol=1e-3)
    largest = eigsh(hessian / np.sqrt(np.outer(p, p)), k=1, which="LA", return_eigenvectors=False)[0]
    np.testing.assert_allclose(results["preconditioned_eigenvalue"], largest, rtol=0.02)
    assert results["preconditioned_eigenvalue"] <= largest * (1 + 1e-4)

    for head, entropies in enumerate(entropies_of_change(program, state, after)):
        np.testing.assert_allclose(vectors[f"qk_update_entropy/{head}"], entropies, rtol=2e-3)

    at = jax.jit(lambda t: loss(jnp.asarray(start + t * u, jnp.float32)))
    step = results["critical_step"]
    assert at(0.97 * step) <= at(0.0) < at(1.03 * step)
    np.testing.assert_allclose(results["critical_sharpness"], 2 / (0.01 * step), rtol=1e-5)


def test_a_rule_without_adam_s_moments_has_no_eigenvalue():
    with pytest.raises(ConfigError, match=r"instruments=eigenvalue needs .* optimizer\.rule\.method=muon hasn't"):
        build(with_rule("muon"))
    curvature = dataclasses.replace(BASE.stability, instruments=("curvature",))
    assert not instruments.has_preconditioner(
        build(with_rule("muon", dataclasses.replace(BASE, stability=curvature))).setup
    )
    for rule in ("adamw", "stable_adamw", "cautious_adamw", "batch_adamw"):
        assert instruments.has_preconditioner(build(with_rule(rule)).setup), rule


def test_instruments_are_of_full_measurements_and_known():
    with pytest.raises(ConfigError, match=r"belong to full measurements: set stability\.measure=full"):
        StabilityConfig(instruments=("curvature",))
    with pytest.raises(ConfigError, match="'sharpness', which is not one of: curvature"):
        StabilityConfig(measure="full", instruments=("sharpness",))


@pytest.mark.slow
def test_instruments_on_eight_devices_are_those_of_one():
    (sharded, of_layers), (alone, of_layers_alone) = (
        measured(program, program.init(0), hypers(program)._replace(position=jnp.int32(0)))
        for program in (build(dataclasses.replace(BASE, mesh=mesh)) for mesh in (EIGHT, scale.MeshConfig()))
    )
    assert sharded.keys() == alone.keys()
    for name, value in sharded.items():
        np.testing.assert_allclose(value, alone[name], rtol=0.05 if "critical" in name else 1e-2, err_msg=name)
    for name, values in of_layers.items():
        np.testing.assert_allclose(values, of_layers_alone[name], rtol=1e-2, err_msg=name)
