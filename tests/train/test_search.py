"""The search that a run begins with: on any reparameterization and mesh, once, and told."""

import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.search import SEARCHES
from jaxstab.table import rows
from jaxstab.train import search, step_io
from jaxstab.train.program import build
from jaxstab.train.state import init_state
from tests.train.test_options import TOKENS, config_of

CHOSEN = [name for name, function in SEARCHES.items() if function()]
FEW = {
    "metainit": {"iterations": 3},
    "gradinit": {"iterations": 3, "gamma": 40.0},
    "nio": {"iterations": 3, "parts": 2},
}
REPARAMETERIZATIONS = [
    *("identity", "wesar", "weight_norm", "sigma_reparam", "residual_scaling", "rescaled_rates", "mlra"),
    *("learnable_multipliers", "mlra+wesar"),
]


def changes_of(method, **others):
    options = {f"init_search.{method}.{name}": value for name, value in FEW[method].items()}
    return {"init_search.method": method, **options, **others}


def begun(changes):
    """The state that a run of this config begins with."""
    setup = build(config_of(changes), end=3).setup
    return setup, search.searched(setup, setup.config.search, itertools.cycle(TOKENS))


@pytest.mark.parametrize("method", REPARAMETERIZATIONS)
def test_effective_matrices_are_what_is_drawn_times_their_factors(method):
    setup = build(config_of({"reparam.method": method}), end=3).setup
    drawn = search._first_weights(setup, 0)
    dice = np.random.default_rng(0)
    ones = search.problem_of(setup, drawn).ones()
    factors = {path: jnp.asarray(dice.uniform(0.5, 2, factor.shape), jnp.float32) for path, factor in ones.items()}
    state = search._begun(setup, factors)
    merged = setup.reparam.merge(state.raw, state.reparam)
    leaves = jax.tree.leaves(merged), jax.tree.leaves(search.problem_of(setup, drawn).scaled(factors))
    for row, weight, expected in zip(rows(setup.table), *leaves, strict=True):
        # A std that is measured differs from that of the draw by its sampling error, for factors that are drawn anew.
        rtol = 0.2 if method.startswith("mlra") and row.role in ("q_proj", "k_proj", "v_proj") else 2e-4
        np.testing.assert_allclose(weight, expected, rtol=rtol, atol=1e-6, err_msg=row.path)
    if method == "wesar":
        gates = state.raw["layers"]["mlp"]["up_proj"]["kernel"]
        np.testing.assert_allclose(jnp.std(gates["weight"], axis=(1, 2)), np.sqrt(4e-5), rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", CHOSEN)
def test_eight_devices_find_the_scales_of_one(method):
    changes = changes_of(method, **{"train.accumulation": 2, "reparam.method": "wesar"})
    setup, state = begun(changes)
    on_mesh, sharded = begun(changes | {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.sequence": 2})
    assert on_mesh.mesh.size == 8
    start = init_state(setup, 0)
    for one, eight in zip(jax.tree.leaves(state.raw), jax.tree.leaves(sharded.raw), strict=True):
        np.testing.assert_allclose(eight, one, rtol=2e-3, atol=1e-7)
    before, after = (setup.reparam.merge(each.raw, each.reparam)["lm_head"]["kernel"] for each in (start, state))
    assert abs(np.linalg.norm(after) / np.linalg.norm(before) - 1) > 1e-3


SEARCHED = "--config.init_search.method=gradinit", "--config.init_search.gradinit.iterations=2"


@pytest.mark.slow
def test_a_run_searches_once_tells_what_it_cost_and_goes_on_from_what_was_found(tiny, tmp_path, monkeypatch, capsys):
    assert tiny.run(tmp_path / "run", *SEARCHED) == 0
    told = capsys.readouterr().out
    assert "Searching initial scales: 2 iterations of gradinit, each at the cost of at most 2 gradients" in told
    assert "(at most 4 gradients): norm of the gradient" in told
    assert "wesar over he scaled by gradinit" in told
    assert "0" in tiny.checkpoints(tmp_path / "run")
    monkeypatch.setattr(step_io, "searched", lambda *_: pytest.fail("searched again"))
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for step in tiny.checkpoints(tmp_path / "run") - {"0"}:
        shutil.rmtree(tmp_path / "again" / "checkpoints" / step)
    (tmp_path / "again" / "metrics.jsonl").unlink()
    assert tiny.run(tmp_path / "again", *SEARCHED) == 0
    tiny.assert_same_arrays(tmp_path / "again", tmp_path / "run")


def test_scales_that_are_not_finite_are_refused(monkeypatch):
    monkeypatch.setattr(search, "_factors", lambda *_: ({"embed": jnp.asarray(np.nan)}, [1.0, np.nan]))
    with pytest.raises(search.UserError, match=r"init_search\.method=gradinit has left the finite numbers"):
        begun(changes_of("gradinit"))
