"""Norm placements: where a residual branch is normalised, and how it is joined to the shortcut.

A placement joins a branch `f` to the shortcut, given the layer and the norms that may stand before and after `f`.
A norm that it never calls has no parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxstab.config import Range, method_section

Function = Callable[[Array], Array]


class Branch(NamedTuple):
    """One residual branch.

    Attributes:
      f: attention or MLP.
      before, after: norms of its own.
      layer: number of the block from 1, a traced scalar.
      depth: number N of blocks.
    """

    f: Function
    before: Function
    after: Function
    layer: Array
    depth: int


class Norms(NamedTuple):
    """Names of the norms before and after a block's two branches, as Hugging Face's models have them."""

    before_attention: str = "input_layernorm"
    after_attention: str = "post_attention_layernorm"
    before_mlp: str = "pre_feedforward_layernorm"
    after_mlp: str = "post_feedforward_layernorm"


GEMMA_2 = Norms()
# Llama has no norms after its branches, and gives Gemma 2's name for the one after attention to the one before the MLP.
LLAMA = Norms(before_mlp="post_attention_layernorm")


class Placement(NamedTuple):
    """A norm placement.

    Attributes:
      join: (branch, x) -> the shortcut after the branch.
      norms: names of the norms that `join` calls.
      final_norm: whether a norm precedes lm_head.
      gain: number of blocks -> the initial gain of the norms after a branch.
      bounded: whether bounds (15) and (20) of Takase et al. 2025 speak of its branches, which are then x + f(N(x)).
    """

    join: Callable[[Branch, Array], Array]
    norms: Norms = GEMMA_2
    final_norm: bool = True
    bounded: bool = False
    gain: Callable[[int], float] = lambda depth: 1.0


def pre() -> Placement:
    """The branch reads a normalised shortcut, which itself is never touched.

    Formula: x + f(N(x))
    Paper: Xiong et al. 2020, On Layer Normalization in the Transformer Architecture; GPT-2, Llama.
    Parameters: one norm per branch, one at the end.
    Checked against: NumPy float64 (tests/model).
    Certainty: primary.
    """
    return Placement(lambda branch, x: x + branch.f(branch.before(x)), LLAMA, bounded=True)


def post() -> Placement:
    """The shortcut is normalised after every branch. So is the last block's output, and no final norm follows.

    Formula: N(x + f(x))
    Paper: Vaswani et al. 2017.
    Parameters: one norm per branch.
    Checked against: NumPy float64 (tests/model).
    Certainty: primary.
    """
    return Placement(lambda branch, x: branch.after(x + branch.f(x)), final_norm=False)


def deepnorm(
    exponent: Annotated[float, "α = (2N)^exponent: 0.25 is DeepNorm's decoder, 0.5 GLM-130B's.", Range(0)] = 0.25,
) -> Placement:
    """Post-norm with a stronger shortcut; its initial scale is `init.method=deepnorm`.

    Formula: N(α x + f(x)), α = (2N)^(1/4)
    Paper: Wang et al. 2022, DeepNet; GLM-130B (Zeng et al. 2023) has α = (2N)^(1/2).
    Parameters: one norm per branch.
    Checked against: NumPy float64 (tests/model); the effect of the matrices' first SGD update stays bounded
      as depth grows (tests/train/test_promises.py).
    Certainty: α remembered for DeepNorm, secondary for GLM-130B.
    """

    def join(branch: Branch, x: Array) -> Array:
        return branch.after((2 * branch.depth) ** exponent * x + branch.f(x))

    return Placement(join, final_norm=False)


def peri(
    exponent: Annotated[
        float, "The norms after branches begin with the gain N^-exponent: 0.5 is Trinity's, depth-scaled.", Range(0)
    ] = 0.0,
) -> Placement:
    """Norms on both sides of a branch, also called sandwich.

    Formula: x + N'(f(N(x)))
    Paper: Kim et al. 2025, Peri-LN; Ding et al. 2021, CogView; depth-scaled, Arcee 2026, Trinity (arXiv:2602.17004).
    Parameters: two norms per branch, one at the end.
    Checked against: NumPy float64 (tests/model).
    Certainty: secondary.
    """
    return Placement(
        lambda branch, x: x + branch.after(branch.f(branch.before(x))), gain=lambda depth: depth**-exponent
    )


def reordered() -> Placement:
    """The norm on a branch's output alone; OLMo 2 joins it with `model.qk_norm`.

    Formula: x + N(f(x))
    Paper: OLMo 2 (2025), section 3.
    Parameters: one norm per branch, one at the end.
    Checked against: NumPy float64 (tests/model).
    Certainty: primary.
    """
    return Placement(lambda branch, x: x + branch.after(branch.f(x)))


def pre_scaled() -> Placement:
    """LayerNorm scaling: pre-norm whose output shrinks with depth. Not meant for a depth-scaled initial scale.

    Formula: x + f(N(x) / sqrt(l)), l = 1 ... N
    Paper: Sun et al. 2025, The Curse of Depth in Large Language Models.
    Parameters: one norm per branch, one at the end.
    Checked against: NumPy float64 (tests/model).
    Certainty: secondary, and the authors' README.
    """

    def join(branch: Branch, x: Array) -> Array:
        return x + branch.f((branch.before(x) / jnp.sqrt(branch.layer)).astype(x.dtype))

    return Placement(join, LLAMA)


def mix(
    fraction: Annotated[
        float, "Share of the blocks that are post-norm, the first ones, rounded up.", Range(0, 1)
    ] = 0.25,
) -> Placement:
    """Mix-LN: post-norm in the first blocks, pre-norm in the others, with one norm per branch either way.

    Formula: N(x + f(x)) for l ≤ ⌈fraction N⌉, x + f(N(x)) after them
    Paper: Li et al. 2024 (arXiv:2412.13795), Mix-LN.
    Parameters: one norm per branch, one at the end.
    Checked against: NumPy float64 (tests/model).
    Certainty: secondary; rounding up is ours.
    """

    def join(branch: Branch, x: Array) -> Array:
        is_post = branch.layer <= math.ceil(fraction * branch.depth)
        y = x + branch.f(jnp.where(is_post, x, branch.before(x)))
        return jnp.where(is_post, branch.before(y), y)

    return Placement(join, LLAMA)


def none() -> Placement:
    """No norm anywhere, for initial scales that need none (`init.method=t_fixup`, `fixup`) or `reparam.method=rezero`.

    Formula: x + f(x)
    Paper: Huang et al. 2020, T-Fixup; Bachlechner et al. 2020, ReZero.
    Parameters: none.
    Checked against: NumPy float64 (tests/model).
    Certainty: primary.
    """
    return Placement(lambda branch, x: x + branch.f(x), final_norm=False)


PLACEMENTS = {
    "pre": pre,
    "post": post,
    "deepnorm": deepnorm,
    "peri": peri,
    "reordered": reordered,
    "pre_scaled": pre_scaled,
    "mix": mix,
    "none": none,
}

PlacementConfig = method_section("PlacementConfig", PLACEMENTS, "pre", "Where norms stand (model/placements.py).")
