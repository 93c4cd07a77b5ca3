"""What stands in a norm's place against PyTorch: value and gradients, by the input too."""

import jax
import numpy as np
import pytest

from jaxstab.model.config import ModelConfig
from jaxstab.model.layers import norm_layer

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")


@pytest.mark.parametrize(("norm", "squash"), [("dyt", "tanh"), ("derf", "erf")])
def test_value_and_gradients(norm, squash):
    random = np.random.default_rng(0)
    x, cotangent = random.normal(size=(2, 3, 5, 8))
    weights = {name: random.normal(size=8) for name in ("scale", "bias")} | {"alpha": np.array(0.7)}
    weights |= {"shift": np.array(-0.3)} if norm == "derf" else {}

    with jax.enable_x64(True):
        layer = norm_layer(ModelConfig(norm=norm))
        value, pullback = jax.vjp(lambda weights, x: layer.apply({"params": weights}, x), weights, x)
        gradients, by_x = pullback(cotangent.astype(value.dtype))

    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in weights.items()}
    their_x = torch.tensor(x, requires_grad=True)
    squashed = getattr(torch, squash)(theirs["alpha"] * their_x + theirs.get("shift", 0.0))
    expected = theirs["scale"] * squashed + theirs["bias"]
    expected.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(by_x, their_x.grad, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, theirs[name].grad, rtol=1e-5, atol=1e-6)
