"""Initial scales with multipliers, by which the best learning rate of a small model stays that of a large one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

from jaxstab.table import EMBEDDINGS, Row


class Transfer(NamedTuple):
    """A scale that fills in more than the std: multipliers of the forward pass, learning rate, decay and eps.

    Attributes:
      row: (row, model width) -> row, for every parameter, vectors too.
      scales_branches: whether it multiplies the residual branches by a constant.
    """

    row: Callable[[Row, int], Row]
    scales_branches: bool = False


def mup(
    base_width: Annotated[int, "Width at which the learning rate was tuned; there it is `normal` without depth."] = 256,
    std: Annotated[float, "Standard deviation of every matrix at the base width."] = 0.02,
) -> Transfer:
    """Maximal update parameterization for Adam: the learning rate carries over from one width to another.

    Formula: with m = d / d_base, hidden matrices have std σ/√m, rate η/m, decay λm; lm_head puts out 1/m; other
      matrices have std σ; eps is ε/m everywhere
    Paper: Yang et al. 2022, Tensor Programs V, Table 8; microsoft/mup; Dey et al. 2025, Table 1.
    Parameters: none.
    Checked against: NumPy float64, and logits whose first change is the same at several widths (tests/initialize).
    Certainty: primary for std, rate, decay and output (microsoft/mup, EleutherAI/nanoGPT-mup), remembered for eps.

    Heads are to keep their size while the width grows: attention's 1/d_head is then a constant times the 1/√d_head that
    the model has. The multipliers are those of stored matrices: under wesar, whose gates absorb them and whose rate is
    relative to σ, nothing is known to carry over. Decay is meant coupled to the rate (optimizer.independent_decay off).
    """
    return Transfer(lambda row, width: _transferred(row, std, width / base_width, 1.0))


def complete_p(
    base_width: Annotated[int, "Width at which the learning rate was tuned."] = 256,
    base_depth: Annotated[int, "Depth at which the learning rate was tuned."] = 2,
    std: Annotated[float, "Standard deviation of every matrix at the base width and depth."] = 0.02,
) -> Transfer:
    """CompleteP: muP, and residual branches times 1/N, so that the learning rate carries over to other depths too.

    Formula: mup's, with n = N / N_base: x + f(N(x)) / n, and eps ε/(mn) in the blocks
    Paper: Dey et al. 2025, Table 1 (α = 1); EleutherAI/nanoGPT-mup, branch completep.
    Parameters: none; the branch multiplier is a constant of o_proj, down_proj and their biases.
    Checked against: NumPy float64, and branches scaled one by one in the model (tests/initialize).
    Certainty: primary (the authors' code) but for eps outside the blocks, remembered as ε/m; the code has ε/(mn) there.

    At α = 1 the rates of norms and biases don't depend on depth. There is no 1/√(2N) anywhere. See `mup` for heads,
    wesar and decay.
    """
    return Transfer(
        lambda row, width: _transferred(row, std, width / base_width, row.depth / base_depth), scales_branches=True
    )


def _transferred(row: Row, std: float, m: float, n: float) -> Row:
    """A row at m times the base width and n times the base depth."""
    row = row.replace(eps=1 / (m * n) if row.stacked else 1 / m)
    if row.branch:
        row = row.replace(multiplier=1 / n)
    if row.role in EMBEDDINGS:
        return row.replace(std=std)
    if row.role == "lm_head":
        return row.replace(std=std / m, multiplier=1 / m)
    if row.is_matrix:
        return row.replace(std=row.multiplier * std / math.sqrt(m), learning_rate=1 / m, decay=m)
    return row
