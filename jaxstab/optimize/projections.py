"""What a projection of the stored parameters after an update is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Array

from jaxstab.config import ConfigError
from jaxstab.table import Raw, Row, Stored, Table, rows


class Projection(NamedTuple):
    """A projection of the stored parameters, and what the rest of a run has to know of it.

    Attributes:
      project: (table of what is stored, raw parameters after the update, forward maxima) -> raw parameters.
      needs: names of the forward maxima that it reads, of those among the model's intermediates: max_attention_logit
        [L, H], max_activation [L]. They are taken over the batch of the step, with the weights before the update.
      shrinks: roles of the matrices that it scales down. The model has to feel that, so that the projection is refused
        where a norm divides their scale out; and a sudden fall of their norms is no sign of trouble.
    """

    project: Callable[[Table[Stored], Raw, Mapping[str, Array]], Raw]
    needs: tuple[str, ...] = ()
    shrinks: tuple[str, ...] = ()


def none() -> Projection:
    """No projection.

    Formula: W
    Paper: none
    Parameters: none
    Checked against: the weights themselves
    Certainty: primary
    """
    return Projection(lambda table, raw, maxima: raw)


def only_matrix(table: Table[Stored], role: str, method: str) -> Row:
    """The row of the one stored matrix of a role; raises ConfigError, by a projection's name, where there isn't one."""
    matrices = [row for row in rows(table) if row.role == role and not row.tied]
    if len(matrices) != 1:
        raise ConfigError(
            f"optimizer.projection={method} needs one stored matrix for {role}, not {len(matrices)}; "
            "untie it, or use a reparameterization that stores one"
        )
    return matrices[0]
