"""The measurements of every step."""

from __future__ import annotations

import jax

from jaxstab.numerics import matrix_norm
from jaxstab.stability.norms import gates, matrix_rms, nonfinite_fraction, update_ratio
from jaxstab.stability.tev import tev, token_variabilities
from jaxstab.table import Effective, Gradients, Raw, RawGradients, Stored, Table, Weights, by_role, rows


@jax.named_scope("measurements")
def step_statistics(
    table: Table[Effective],
    stored_table: Table[Stored],
    *,
    raw: Raw,
    weights: Weights,
    raw_gradients: RawGradients,
    gradients: Gradients,
    clipped_raw_gradients: RawGradients,
    updates: Raw,
    new_weights: Weights | None,
    eps: float,
) -> dict[str, jax.Array]:
    """The light measurements of one step. Each takes a few passes over the parameters.

    - update_ratio ‖ΔW‖/‖W‖ and update_ratio_effective ‖ΔW̄‖/‖W̄‖ (Nishida et al. 2024, section 1, Figures 1 and 9-12)
    - norm ‖W‖, norm_effective ‖W̄‖ (Figure 3), and grad_norm, grad_norm_effective of the gradients by either (Figure 8)
    - gate: α, of the matrices that are stored with gates
    - update_rms: √(mean ΔW²)
    - grad_rms_over_eps: √(mean g²) / eps of the gradient that the update rule gets; near 1 and below, Adam's eps holds
      the update down (Wortsman et al. 2023); left out where eps is 0
    - nonfinite_fraction: of the entries of the effective gradient
    - tev_mean, tev_std: see `tev`, of the effective embed_tokens and lm_head

    Args:
      table, stored_table: rows of the effective weights and of what is stored.
      raw, weights: stored parameters and effective weights before the update.
      raw_gradients, gradients: by `raw` and by `weights`, before clipping.
      clipped_raw_gradients: the gradient by `raw`, after clipping.
      updates: what is added to `raw`.
      new_weights: effective weights after the update; None where they are the stored parameters times constants, so
        that the effective ratios are the stored ones.
      eps: that of Adam, before the multiplier of each row.

    Returns:
      {"stability/<measurement>/<role>": value}, float32, `[L]` for roles that are stacked and scalar for the others.
      A second stored matrix of one role (a factor) has its path in place of the role.
    """
    stored_ratio = update_ratio(stored_table, updates, raw)
    statistics = {
        "update_ratio": stored_ratio,
        "update_ratio_effective": _with_tied(table, stored_ratio)
        if new_weights is None
        else update_ratio(table, jax.tree.map(lambda new, old: new - old, new_weights, weights), weights),
        "update_rms": by_role(matrix_rms, stored_table, updates),
        "norm": by_role(matrix_norm, stored_table, raw),
        "norm_effective": by_role(matrix_norm, table, weights),
        "grad_norm": by_role(matrix_norm, stored_table, raw_gradients),
        "grad_norm_effective": by_role(matrix_norm, table, gradients),
        "gate": gates(table, stored_table, raw),
        "nonfinite_fraction": nonfinite_fraction(table, gradients),
    }
    if eps:
        statistics["grad_rms_over_eps"] = by_role(
            lambda row, g: matrix_rms(row, g) / (eps * row.eps), stored_table, clipped_raw_gradients
        )
    of_tokens = {role: tev(each) for role, each in token_variabilities(table, weights).items()}
    statistics["tev_mean"] = {role: mean for role, (mean, _) in of_tokens.items()}
    statistics["tev_std"] = {role: std for role, (_, std) in of_tokens.items()}
    return {f"stability/{name}/{role}": value for name, by in statistics.items() for role, value in by.items()}


def _with_tied(table: Table[Effective], ratios: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The ratios of a tied matrix are those of the one that is stored."""
    role_at = {row.path: row.role for row in rows(table)}
    return ratios | {row.role: ratios[role_at[row.tied]] for row in rows(table) if row.tied and row.is_matrix}
