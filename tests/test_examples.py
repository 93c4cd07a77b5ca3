"""The examples and the README's, as anybody would run them: a module of their own, three lines of jaxstab, merging."""

import re
import runpy
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
CALLS = ("read(weights, ROLES)", "reparam.reparameterize(", "rep.init(weights)")


@pytest.mark.parametrize("method", ["wesar", "sigma_reparam"])
@pytest.mark.parametrize("flavour", ["linen", "nnx"])
def test_a_reparameterized_module_trains_and_merges(flavour, method, capsys):
    main = runpy.run_path(str(EXAMPLES / f"reparameterize_{flavour}.py"))["main"]
    assert main(method, steps=60) < 0.5  # from log 10 = 2.3
    accuracy = capsys.readouterr().out.split()[-1]
    assert float(accuracy) > 0.9, "of the merged weights, in the plain module"


@pytest.mark.parametrize("flavour", ["linen", "nnx"])
def test_three_lines_at_the_call_site_wrap_a_module(flavour):
    lines = (EXAMPLES / f"reparameterize_{flavour}.py").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if CALLS[0] in line)
    assert all(call in line for call, line in zip(CALLS, lines[first : first + 3], strict=True))


def test_the_readme_reparameterizes_a_model():
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    place = {}
    exec(compile(block, "README.md", "exec"), place)
    drawn = place["model"].init(jax.random.key(1), place["x"])["params"]
    chex.assert_trees_all_close(place["weights"], drawn, rtol=1e-6)
    for layer in ("layers_0", "layers_2"):
        assert jnp.std(place["raw"][layer]["kernel"]["weight"]) == pytest.approx(0.02, rel=0.01)
        gradient = place["gradients"][layer]["kernel"]["gate"]
        assert jnp.isfinite(gradient) and gradient != 0
