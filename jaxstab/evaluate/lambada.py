"""LAMBADA: the last word of a passage, as lm-evaluation-harness's task `lambada_openai` defines it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxstab import safe_json
from jaxstab.config import UserError
from jaxstab.evaluate.language_model import LanguageModel
from jaxstab.evaluate.results import Result, perplexity, ratio
from jaxstab.evaluate.scoring import Shown, requests_of, score

FILE = "lambada/lambada_test.jsonl"


def split(passage: str) -> tuple[str, str]:
    """What stands before the last space, and the last word with it."""
    context, _, word = passage.rpartition(" ")
    return context, f" {word}"


def read(data: Path) -> list[str]:
    """The passages below a directory of benchmarks; raises UserError where there are none."""
    path = data / FILE
    try:
        return [safe_json.loads(line)["text"] for line in path.read_text("utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: LAMBADA, a JSON object with a text per line") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} isn't JSON lines with a text each: {type(error).__name__}: {error}") from error


def lambada(lm: LanguageModel, passages: Sequence[str], shown: Shown = iter) -> list[Result]:
    """The perplexity of last words, a word being as many tokens as it takes, and how often a greedy model says them.

    Args:
      lm: the model.
      passages: texts whose last word, after their last space, is scored.
      shown: shows how far the loop over batches is.
    """
    scores = score(lm, requests_of(lm, [split(passage) for passage in passages]), shown)
    nats, ones = [-each.log_likelihood for each in scores], [1] * len(scores)
    return [
        Result("lambada", "perplexity", *perplexity(*ratio(nats, ones))),
        Result("lambada", "acc", *ratio([each.is_greedy for each in scores], ones)),
    ]
