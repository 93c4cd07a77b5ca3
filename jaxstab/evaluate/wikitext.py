"""Perplexity of WikiText, as lm-evaluation-harness's task `wikitext` (version 2) defines it.

A page is scored whole, its text detokenised; its words and bytes are counted before that. A page that is longer than
the model reads is cut into windows.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxstab.config import UserError
from jaxstab.evaluate.language_model import LanguageModel
from jaxstab.evaluate.results import Result, perplexity, ratio
from jaxstab.evaluate.scoring import Request, Shown, score

FILES = ("test.txt", "wiki.test.tokens", "wiki.test.raw")
# What undoes WikiText's tokenisation, in this order.
REPLACEMENTS = (
    ("s '", "s'"),
    ("/' [0-9]/", "/'[0-9]/"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (r" @\.@ ", "."),
    *((rf" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def read(data: Path) -> str:
    """The test set below a directory of benchmarks; raises UserError where there is none."""
    paths = [data / "wikitext-2" / name for name in FILES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(f"{paths[0]} is missing: WikiText-2's test set, also as {' or '.join(FILES[1:])}")
    return path.read_text()


def pages(text: str) -> list[str]:
    """The articles of a WikiText file, each from its title on, as EleutherAI/wikitext_document_level cuts them."""
    articles: list[list[str]] = [[]]
    for line in text.split("\n"):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            articles.append([])
        articles[-1].append(line)
    joined = ("\n".join(lines) for lines in articles)
    return [page for page in joined if page.strip()]


def detokenised(page: str) -> str:
    """A page as people write it."""
    for pattern, replacement in REPLACEMENTS:
        page = re.sub(pattern, replacement, page)
    return page


def windows(tokens: Sequence[int], prefix: int, max_length: int, stride: int) -> Iterator[Request]:
    """Cuts a text into windows, in which every token is scored once.

    Args:
      tokens: of the text.
      prefix: what the first token follows.
      max_length: tokens that the model reads at once.
      stride: tokens that every window but the first scores, at most `max_length`; what else it holds is their context.
        With `max_length` a window's first token has one token of context, as in the harness.
    """
    starts = [0, *range(max_length, len(tokens), stride)]
    for start, stop in itertools.pairwise([*starts, len(tokens)]):
        yield Request(tokens[stop - max_length - 1 : start] if start else [prefix], tokens[start:stop])


def wikitext(lm: LanguageModel, text: str, stride: int = 0, limit: int = 0, shown: Shown = iter) -> list[Result]:
    """Perplexities per word, per byte and per token, and bits per byte.

    Args:
      lm: the model.
      text: of WikiText's file.
      stride: see `windows`; 0 takes the model's `max_length`.
      limit: pages that are scored, the first ones; 0 takes all.
      shown: shows how far the loop over batches is.
    """
    chosen = pages(text)[: limit or None]
    encoded = [ids.tolist() for ids in lm.tokenizer.encode([detokenised(page) for page in chosen])]
    by_page = [list(windows(ids, lm.tokenizer.end, lm.max_length, stride or lm.max_length)) for ids in encoded]
    scores = iter(score(lm, list(itertools.chain(*by_page)), shown))
    nats = [-sum(next(scores).log_likelihood for _ in requests) for requests in by_page]
    rates = {
        "word": ratio(nats, [len(re.split(r"\s+", page)) for page in chosen]),
        "byte": ratio(nats, [len(page.encode()) for page in chosen]),
        "token": ratio(nats, [len(ids) for ids in encoded]),
    }
    bits = [each / math.log(2) for each in rates["byte"]]
    perplexities = [Result("wikitext", f"{unit}_perplexity", *perplexity(*rate)) for unit, rate in rates.items()]
    return [*perplexities, Result("wikitext", "bits_per_byte", *bits)]
