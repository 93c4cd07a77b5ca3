"""Texts that a model writes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from jaxstab import scale
from jaxstab.config import UserError
from jaxstab.evaluate.generate import generate, padded
from jaxstab.evaluate.language_model import LanguageModel
from jaxstab.evaluate.sampling import Sampling


def continued(lm: LanguageModel, prompts: Sequence[str], length: int, sampling: Sampling, seed: int = 0) -> list[str]:
    """Every prompt with its continuation, which ends with its document or after `length` tokens.

    Args:
      lm: the model.
      prompts: texts that begin a document; "" begins one of the model's own.
      length: tokens that are added at most.
      sampling: how each is chosen.
      seed: of the draws.

    Raises:
      UserError: a prompt with so many tokens is longer than the model's positions allow.
    """
    tokenizer, most = lm.tokenizer, lm.max_length
    encoded = [[tokenizer.end, *ids] for ids in tokenizer.encode(prompts)]  # an end token begins a document
    longest = max(map(len, encoded))
    if longest + length > most:
        raise UserError(
            f"--length={length} after a prompt of {longest} tokens, the one that begins a document included, is more "
            f"than model.max_length={most} takes: at most --length={most - longest}"
        )
    added = scale.on_mesh(lm.mesh, generate)(
        lm.model,
        lm.weights,
        *padded(encoded),
        jax.random.key(seed),
        length,
        sampling,
        vocabulary=tokenizer.vocabulary,
        end=tokenizer.end,
        stop=tokenizer.end,
    )
    rows = zip(encoded, np.asarray(added), strict=True)
    return [tokenizer.decode([*prompt, *tokens]) for prompt, tokens in rows]
