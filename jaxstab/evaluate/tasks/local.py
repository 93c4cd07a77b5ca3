"""WikiText-2 and LAMBADA from local files, for the harness; `main.py evaluate` measures them without it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets

from jaxstab.evaluate import lambada, wikitext


def wikitext_pages(data: str = "", **_: Any) -> datasets.DatasetDict:
    """page."""
    pages = wikitext.pages(wikitext.read(Path(data)))
    return datasets.DatasetDict({"test": datasets.Dataset.from_list([{"page": page} for page in pages])})


def detokenised(doc: dict[str, Any]) -> str:
    """The page as people write it."""
    return wikitext.detokenised(doc["page"])


def wikitext_results(doc: dict[str, Any], results: Any) -> dict[str, tuple[float, int]]:
    """The log-likelihood of a page with its words and its bytes, as they are in the file."""
    (log_likelihood,) = results
    words, size = len(re.split(r"\s+", doc["page"])), len(doc["page"].encode())
    return {
        "word_perplexity": (log_likelihood, words),
        "byte_perplexity": (log_likelihood, size),
        "bits_per_byte": (log_likelihood, size),
    }


def passages(data: str = "", **_: Any) -> datasets.DatasetDict:
    """text."""
    texts = [{"text": text} for text in lambada.read(Path(data))]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(texts)})
