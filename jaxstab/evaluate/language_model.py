"""A model with what it takes to read and write text."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from jaxstab.data import Tokenizer
from jaxstab.model.transformer import Transformer
from jaxstab.table import Weights


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model with what it takes to read and write text.

    Attributes:
      mesh: the devices.
      model: called as `model.apply({"params": weights}, tokens, ...)`, on the mesh.
      weights: effective, float32.
      tokenizer: its end token begins a document, too.
    """

    mesh: Mesh
    model: Transformer
    weights: Weights
    tokenizer: Tokenizer

    @property
    def max_length(self) -> int:
        """The longest sequence that the model reads."""
        return self.model.config.max_length

    @property
    def data_parallel(self) -> int:
        """Devices that the rows of a batch are spread over."""
        return self.mesh.shape["replica"] * self.mesh.shape["fsdp"]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with no special token."""
        return self.tokenizer.encode([text])[0].tolist()
