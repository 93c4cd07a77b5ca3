"""Initial scales: functions `row -> std` of the effective weights.

An embedding's fan-in is its width, since one of its rows enters the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from jaxstab.config import Range, UserError
from jaxstab.table import BRANCH_OUTPUTS, EMBEDDINGS, Row, Std

Scale = Callable[[Row], Std]

MLP = ("gate_proj", "up_proj", "down_proj")


def _residual(row: Row) -> float:
    """1/√(2N) for the last matrix of a residual branch (Radford et al. 2019)."""
    return 1 / math.sqrt(2 * row.depth) if row.role in BRANCH_OUTPUTS else 1.0


def _xavier(row: Row) -> float:
    return math.sqrt(2 / (row.fan_in + row.fan_out))


def he(
    gain: Annotated[
        float, "Gain of down_proj, which reads the activation; sqrt(2) is ReLU's.", Range(above=0)
    ] = math.sqrt(2),
    depth_scaled: Annotated[bool, "Whether o_proj and down_proj are times 1/sqrt(2N)."] = True,
) -> Scale:
    """He initialization with residual scaling: the outputs of a layer have the variance of its inputs.

    Formula: gain/√d_in, times 1/√(2N) for o_proj and down_proj; gain √2 for down_proj, 1 elsewhere; embeddings 1/√d
    Paper: He et al. 2015; Nishida et al. 2024, Table 1.
    Parameters: none.
    Checked against: the values of Table 1 for the paper's sizes, and measured draws (tests/initialize).
    Certainty: primary.
    """

    def std(row: Row) -> float:
        fan_in = row.fan_out if row.role in EMBEDDINGS else row.fan_in
        return (gain if row.role == "down_proj" else 1.0) / math.sqrt(fan_in) * (_residual(row) if depth_scaled else 1)

    return std


def small() -> Scale:
    """Small initialization with residual scaling: one small std everywhere.

    Formula: √(2/(5d)), times 1/√(2N) for o_proj and down_proj
    Paper: Nguyen and Salazar 2019; Nishida et al. 2024, Table 1.
    Parameters: none.
    Checked against: the values of Table 1 for the paper's sizes, and measured draws (tests/initialize).
    Certainty: primary.
    """
    return lambda row: math.sqrt(2 / (5 * row.width)) * _residual(row)


def megatron() -> Scale:
    """The initialization of Megatron-LM in Spike No More: Nishida et al.'s Small under another name.

    Formula: N(0, 2/(5d)), times 1/√(2N) for o_proj and down_proj
    Paper: Takase et al. 2025, Spike No More.
    Parameters: none.
    Checked against: small, to which it is declared equivalent (tests/initialize).
    Certainty: secondary, by a translation of the paper.
    """
    return small()


def xavier() -> Scale:
    """Xavier initialization of every matrix, without any scaling by depth.

    Formula: √(2/(d_in + d_out)), for embeddings √(2/(V + d))
    Paper: Glorot and Bengio 2010, equation 16; Takase et al. 2025, Spike No More, Appendix B.1.
    Parameters: none.
    Checked against: Flax's glorot_normal (tests/initialize).
    Certainty: primary; that it covers the embedding is PyTorch's reading of the same name.
    """
    return _xavier


def normal(
    std: Annotated[float, "Standard deviation of every matrix.", Range(above=0)] = 0.02,
    depth_scaled: Annotated[bool, "Whether o_proj and down_proj are times 1/sqrt(2N), as GPT-2 has it."] = True,
    zero_outputs: Annotated[bool, "Whether o_proj and down_proj are 0, as in nanochat and modded-nanogpt."] = False,
) -> Scale:
    """One constant std, whatever the width.

    Formula: N(0, 0.02²), times 1/√(2N) for o_proj and down_proj, or 0 there
    Paper: Radford et al. 2019 (GPT-2); without the depth, OLMo 2.
    Parameters: none.
    Checked against: measured draws (tests/initialize).
    Certainty: primary.
    """

    def scale(row: Row) -> float:
        if zero_outputs and row.role in BRANCH_OUTPUTS:
            return 0.0
        return std * (_residual(row) if depth_scaled else 1.0)

    return scale


def ds_init(
    reading: Annotated[
        str, "`paper` scales the std by 1/sqrt(l), `code`, the authors', the variance.", ("paper", "code")
    ] = "paper",
) -> Scale:
    """Depth-scaled initialization: the deeper the block, the smaller its matrices.

    Formula: √(2/(d_in + d_out)) l^(-1/2) in block l = 1..N by the paper, l^(-1/4) by the code; embeddings, lm_head 1/√d
    Paper: Zhang, Titov and Sennrich 2019, equation 6; bzhangGo/zero, models/transformer.py.
    Parameters: none.
    Checked against: Flax's variance_scaling, block by block, and measured draws (tests/initialize).
    Certainty: primary for the code (it passes (l+1)^(-1/2) to a *variance* scaling), remembered for the paper; they
      disagree. Embeddings and lm_head are this project's choice.
    """
    exponent = {"paper": 0.5, "code": 0.25}[reading]

    def std(row: Row) -> Std:
        if row.role in (*EMBEDDINGS, "lm_head"):
            return row.width**-0.5
        if not row.stacked:
            raise UserError(f"ds_init scales by layer, but {row.path} has no layer axis; stack blocks or use xavier")
        return tuple(_xavier(row) * block**-exponent for block in range(1, row.layers + 1))

    return std


def t_fixup(
    side: Annotated[
        str,
        "Whose factor: `encoder` 0.67 N^(-1/4), whose blocks have the two branches of ours; `decoder` (9N)^(-1/4), "
        "derived with cross-attention.",
        ("encoder", "decoder"),
    ] = "encoder",
) -> Scale:
    """T-Fixup: small enough values and MLPs make norms and warmup needless.

    Formula: √(2/(d_in + d_out)), times 0.67 N^(-1/4) for v, o and the MLP; embeddings (9N)^(-1/4)/√d, lm_head 1/√d
    Paper: Huang et al. 2020, section 3.2; layer6ai-labs/T-Fixup.
    Parameters: none; it is meant for model.norm_placement=none.
    Checked against: NumPy float64 and measured draws (tests/initialize).
    Certainty: primary for the factors (the authors' code); it trains encoder-decoders only, so that which factor a
      decoder-only model takes is this project's reading. Its code has gain 1/√2 for q and k, its paper 1.
    """

    def std(row: Row) -> float:
        decoder = (9 * row.depth) ** -0.25
        if row.role in EMBEDDINGS:
            return decoder * row.width**-0.5
        if row.role == "lm_head":
            return row.width**-0.5
        factor = 0.67 * row.depth**-0.25 if side == "encoder" else decoder
        return _xavier(row) * (factor if row.role in ("v_proj", "o_proj", *MLP) else 1.0)

    return std


def deepnorm() -> Scale:
    """DeepNorm's β: the initial scale that goes with model.norm_placement=deepnorm, which has its α.

    Formula: √(2/(d_in + d_out)), times β = (8N)^(-1/4) for v, o and the MLP; embeddings and lm_head 1/√d
    Paper: Wang et al. 2022, DeepNet, Figure 2; microsoft/torchscale, architecture/decoder.py.
    Parameters: none.
    Checked against: NumPy float64 and measured draws (tests/initialize).
    Certainty: primary for β (the authors' code); the paper has gain 1 for q and k, the code 1/√2, and v in the code is
      smaller by the same factor.
    """

    def std(row: Row) -> float:
        if row.role in (*EMBEDDINGS, "lm_head"):
            return row.width**-0.5
        beta = (8 * row.depth) ** -0.25
        return _xavier(row) * (beta if row.role in ("v_proj", "o_proj", *MLP) else 1.0)

    return std
