"""What happens between the embedding matrix and the first block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
from jaxtyping import Array

from jaxstab.config import Range, method_section


class Embedding(NamedTuple):
    """A treatment of the embedding.

    Attributes:
      multiplier: (initial std, width) -> constant factor of embed_tokens. The table has it, not the model, so that a
        gate may absorb it.
      apply: (x, norm) -> x, on the embedded tokens; a norm that isn't called has no parameters.
      normalized: whether `apply` normalises the embedded tokens, so that no block sees the scale of the matrix.
    """

    multiplier: Callable[[float, int], float] = lambda std, width: 1.0
    apply: Callable[[Array, Callable[[Array], Array]], Array] = lambda x, norm: x
    normalized: bool = False

    @property
    def only_scales(self) -> bool:
        """Whether embedded tokens are rows of the matrix times a constant."""
        return self.apply is Embedding._field_defaults["apply"]


def plain() -> Embedding:
    """The embedding as it is.

    Formula: E
    Paper: GPT-2.
    Parameters: none.
    Checked against: NumPy float64 (tests/model).
    Certainty: primary.
    """
    return Embedding()


def unit() -> Embedding:
    """Embedding scaling to a standard deviation of 1, whatever the initial scale.

    Formula: E / σ_e
    Paper: Nishida et al. 2024, section 2.2 and Table 1.
    Parameters: none.
    Checked against: Table 1 (tests/test_describe.py).
    Certainty: primary.
    """
    return Embedding(multiplier=lambda std, width: 1 / std)


def scaled(
    factor: Annotated[float, "The factor; 0 takes sqrt(d).", Range(0)] = 0.0,
) -> Embedding:
    """Scaled Embed: with Small's or Megatron's initial scale its standard deviation is sqrt(2/5) = 0.632.

    Formula: sqrt(d) E, or another factor: MiniCPM's 12, YuLan-Mini's 10
    Paper: Takase et al. 2025, Spike No More; Vaswani et al. 2017.
    Parameters: none.
    Checked against: NumPy float64 (tests/model).
    Certainty: primary, by a translation of the paper.
    """
    return Embedding(multiplier=lambda std, width: factor or math.sqrt(width))


def layer_norm() -> Embedding:
    """Embed LN: the model's norm on the embedded tokens.

    Formula: N(E)
    Paper: Takase et al. 2025, Spike No More; Le Scao et al. 2022 (BLOOM).
    Parameters: one norm.
    Checked against: NumPy float64 (tests/model).
    Certainty: primary, by a translation of the paper.
    """
    return Embedding(apply=lambda x, norm: norm(x), normalized=True)


def detach(
    gamma: Annotated[float, "Share of the gradient that reaches the embedding.", Range(0, 1)] = 0.1,
) -> Embedding:
    """Embed Detach: the embedding's gradient shrinks, its value doesn't. GLM-130B's gradient shrink is this form.

    Formula: γ E + (1 - γ) stop_gradient(E)
    Paper: Zeng et al. 2023, GLM-130B; Takase et al. 2025, Spike No More.
    Parameters: none.
    Checked against: NumPy float64 (tests/model).
    Certainty: primary, by a translation of the paper.
    """
    return Embedding(apply=lambda x, norm: gamma * x + (1 - gamma) * jax.lax.stop_gradient(x))


EMBEDDINGS = {
    "plain": plain,
    "unit": unit,
    "scaled": scaled,
    "layer_norm": layer_norm,
    "detach": detach,
}

EmbeddingConfig = method_section("EmbeddingConfig", EMBEDDINGS, "plain", "Embedding (jaxstab/model/embeddings.py).")
