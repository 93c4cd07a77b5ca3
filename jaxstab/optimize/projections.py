"""What a projection of the stored parameters after an update is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Array

from jaxstab.table import Raw, Stored, Table


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
