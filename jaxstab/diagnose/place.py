"""Where in a model: a stored parameter by its name, and its layer."""

from __future__ import annotations

from jaxstab.table import EMBEDDINGS

# A matrix by its role, another parameter by its path; and its layer, None outside of the blocks.
Place = tuple[str, int | None]


def place_in_stack(name: str, column: int) -> int | None:
    """The layer of a series' column; None for what lies outside of the blocks."""
    is_outside = name in (*EMBEDDINGS, "lm_head") or ("/" in name and not name.startswith("layers/"))
    return None if is_outside else column


def named(name: str, layer: int | None) -> str:
    """A place in words: "q_proj of layer 3", "input_layernorm/scale of layer 3"."""
    short = name.removeprefix("layers/")
    return short if layer is None else f"{short} of layer {layer}"
