"""Muon for the matrices inside the blocks, Adam for everything else."""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxstab.config import Range
from jaxstab.optimize.adam import B1, B2, Eps
from jaxstab.optimize.heads import PerHead, head_row, heads_apart
from jaxstab.optimize.layers import TransformationFactory, is_hidden, is_masked
from jaxstab.table import Row, Table

Momentum = Annotated[float, "Decay rate of the momentum of the hidden matrices.", Range(0, below=1)]
NewtonSchulz = Annotated[int, "Newton-Schulz iterations that orthogonalize it; polar_express has 8 at most.", Range(1)]
Coefficients = Annotated[
    str,
    "Coefficients of the iterations: `quintic`, one polynomial (Jordan 2024), or `polar_express`, one an iteration, "
    "each the best for what those before it leave (Amsel et al. 2025).",
    ("quintic", "polar_express"),
]
Rms = Annotated[
    float,
    "RMS of the update of a hidden matrix: 0.2 is about AdamW's, so that its learning rate and decay serve both "
    "(Liu et al. 2025). 0 scales by sqrt(max(1, out / in)) instead (Jordan 2024), which takes another rate.",
    Range(0),
]
QUINTIC = (3.4445, -4.7750, 2.0315)
# Amsel et al. 2025 (arXiv:2505.16932), Algorithm 1: for singular values from 1e-3 on. All but the last are evaluated at
# x / 1.01, so that rounding doesn't take a singular value out of the interval.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
SAFETY = 1.01


def muon(
    momentum: Momentum = 0.95,
    newton_schulz: NewtonSchulz = 5,
    coefficients: Coefficients = "quintic",
    rms: Rms = 0.2,
    per_head: PerHead = False,
    b1: B1 = 0.9,
    b2: B2 = 0.95,
    eps: Eps = 1e-8,
) -> TransformationFactory:
    """Muon: the momentum of every hidden matrix is orthogonalized, layer by layer in a stack.

    Embeddings, `lm_head` and everything that isn't a matrix, gates among them, take Adam with `b1`, `b2` and `eps`.
    Momentum is Nesterov's with optax's bias correction, which gives the newest gradient a larger weight than PyTorch in
    the first steps, and the same later on; the iteration runs in float32 (PyTorch's in bfloat16).

    Where the initial scale has a learning rate of 1/m for a hidden matrix at m times the base width (mup, complete_p),
    that is for Adam, the norm of whose update grows with m. With rms=0 that of Muon's doesn't grow, and with an RMS it
    grows with √m (Yang, Simon and Bernstein 2023, arXiv:2310.17813): the rates become 1 and 1/√m.

    Formula: u = c · NS(β m̂ + (1-β) ĝ), NS(USVᵀ) ≈ UVᵀ, c = rms √max(in, out), or √max(1, out/in) with rms=0
    Paper: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); c of Liu et al. 2025 (arXiv:2502.16982)
    Parameters: none; one value of state for each hidden stored parameter, two for each other
    Checked against: torch.optim.Muon, and NumPy in float64
    Certainty: primary for the iteration and the scales, secondary for `per_head`; optax's scale_by_muon is what runs
    """
    rule = orthogonalize(momentum, newton_schulz, coefficients)

    def bind(table: Table) -> optax.GradientTransformation:
        orthogonalized = heads_apart(table, rule) if per_head else rule
        return partitioned(table, optax.chain(orthogonalized, scale_by_shape(table, rms, per_head)), b1, b2, eps)

    return bind


def orthogonalize(momentum: float, newton_schulz: int, coefficients: str) -> optax.GradientTransformation:
    """The momentum of every matrix, orthogonalized layer by layer in a stack."""
    table = _polynomials(newton_schulz) if coefficients == "polar_express" else QUINTIC
    return scale_by_muon(
        ns_coeffs=table,
        ns_steps=newton_schulz,
        beta=momentum,
        weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), tree),
    )


def _polynomials(count: int) -> tuple[tuple[float, ...], ...]:
    """The first `count` polynomials of Polar Express, with its safety factor; the last of all where there are more."""
    chosen = (*POLAR_EXPRESS, *POLAR_EXPRESS[-1:] * count)[:count]
    powers = (SAFETY, SAFETY**3, SAFETY**5)
    safe = [tuple(c / power for c, power in zip(each, powers, strict=True)) for each in chosen[:-1]]
    return (*safe, chosen[-1])


def partitioned(
    table: Table, hidden: optax.GradientTransformation, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """One transformation for the hidden matrices, and Adam for everything else."""
    paths = jax.tree_util.tree_leaves_with_path(table)
    rule_of = {path: "muon" if is_hidden(row) else "adam" for path, row in paths}
    # By path, and not by the table's structure: optax also asks for the labels of a placeholder.
    return optax.partition(
        {"muon": hidden, "adam": optax.scale_by_adam(b1, b2, eps)},
        lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: rule_of[path], tree),
    )


def scale_by_shape(table: Table, rms: float, per_head: bool) -> optax.GradientTransformation:
    """From a spectral norm of 1 to an RMS of `rms`, or to the norm that depends on the shape alone, of a head's block
    with `per_head`; a row's learning rate, which is Adam's, is taken back as far as the norm doesn't grow with the
    width."""

    def factor(row: Row) -> float:
        row = head_row(row) if per_head else row
        if rms:
            return rms * math.sqrt(max(row.fan_in, row.fan_out) / row.learning_rate)
        return math.sqrt(max(1, row.fan_out / row.fan_in)) / row.learning_rate

    def scale(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u, row: u if is_masked(u) else factor(row) * u, updates, table, is_leaf=is_masked)

    return optax.stateless(scale)
