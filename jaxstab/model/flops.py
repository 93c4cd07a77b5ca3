"""The FLOPs that training spends on a token, by the three conventions that papers count it by."""

from __future__ import annotations

from jaxstab.table import EMBEDDINGS, Effective, Table, rows

CONVENTIONS = ("6N", "causal", "full")


def flops_per_token(table: Table[Effective], length: int) -> dict[str, float]:
    """FLOPs of the matrix products of a training step, per token: forward, and twice as many backward.

    A product of a vector with an [in, out] matrix takes 2 in out. What is recomputed (`model.remat`) doesn't count, nor
    does what isn't a matrix product. A look-up in an embedding is none; lm_head is one, tied or not.

    Args:
      table: the model's effective weights.
      length: T, the tokens of a sequence.

    Returns:
      By the names of CONVENTIONS:
      `6N`: 6 times the entries of the matrices (Kaplan et al. 2020, section 2.1, with lm_head).
      `full`: that and 12 L H K T, for the products of queries with all T keys and of probabilities with all T values,
        in L layers of H heads of size K (Chowdhery et al. 2022, appendix B). Grouped-query heads don't change it.
      `causal`: that and half as much for attention, since a query sees half of the keys.
    """
    matrices = [row for row in rows(table) if row.is_matrix and row.role not in EMBEDDINGS]
    products = 6.0 * sum(row.size for row in matrices)
    attention = 12.0 * length * sum(row.size // row.fan_in for row in matrices if row.role == "q_proj")  # L H K
    return {"6N": products, "causal": products + attention / 2, "full": products + attention}
