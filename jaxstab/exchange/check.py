"""What was exported, read back by `transformers`."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from rich.console import Console

from jaxstab.config import UserError
from jaxstab.exchange.weights import tree
from jaxstab.logging.console import say
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import Transformer

PROBE_LENGTH = 64  # tokens on which two forms of a model are compared
TOLERANCE = 1e-3  # of the largest logit; two float32 models of one function differ by less


def logits_of(model: ModelConfig, weights: Any) -> Float[np.ndarray, "1 T V"]:
    """The logits in float32 on `probe_tokens`."""
    plain = dataclasses.replace(model, dtype="float32", remat="none", attention="xla")
    return np.asarray(jax.jit(Transformer(plain).apply)({"params": weights}, jnp.asarray(probe_tokens(model))))


def probe_tokens(model: ModelConfig) -> Int[np.ndarray, "1 T"]:
    """Random tokens, as many as PROBE_LENGTH."""
    dice = np.random.default_rng(0)
    return dice.integers(0, model.vocabulary, (1, min(PROBE_LENGTH, model.max_length)), np.int32)


def check(
    read: Callable[[], dict[str, np.ndarray]], model: ModelConfig, folder: Path, console: Console
) -> float | None:
    """Says the largest difference of a logit between a model and its export; the two are in memory one by one.

    Args:
      read: the effective weights by path.
      model: their config.
      folder: of the export.
      console: where it is said.

    Returns:
      max |Δ logit|, or None where transformers or torch isn't installed.

    Raises:
      UserError: the two differ by more than rounding.
    """
    if not all(importlib.util.find_spec(name) for name in ("transformers", "torch")):
        say(console, f"Written to {folder}, and not checked: pip install -e .[transformers] reads it back.")
        return None
    logits = logits_of(model, tree(read()))
    difference = float(np.max(np.abs(logits - _theirs(folder, probe_tokens(model)))))
    say(console, f"Written to {folder}. Read back by transformers, its logits differ by {difference:.2g} at most.")
    if not difference <= TOLERANCE * np.max(np.abs(logits)):
        raise UserError(f"what transformers reads from {folder} computes something else; please report this")
    return difference


def _theirs(folder: Path, tokens: Int[np.ndarray, "1 T"]) -> Float[np.ndarray, "1 T V"]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.numpy()
