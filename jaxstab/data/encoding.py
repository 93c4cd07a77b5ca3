"""Documents to ids in bounded memory: the libraries take a hundred bytes a character of what they encode at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from jaxstab.data.tokenizers import Tokenizer

CHARACTERS_AT_ONCE = 1 << 20
LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
SPACE = re.compile(r"(?<=\S) (?=\S)")


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[np.ndarray], int]:
    """The ids of each text, int [n], and how much of all of them the tokenizer has no piece for.

    Texts of more than CHARACTERS_AT_ONCE are encoded part by part; see `parts`.
    """
    if sum(map(len, texts)) <= CHARACTERS_AT_ONCE:
        encoded = tokenizer.encode(texts)
        return encoded, tokenizer.unknown(texts, encoded)
    ids, unknown = zip(*map(_by_parts, [tokenizer] * len(texts), texts), strict=True)
    return list(ids), sum(unknown)


def _by_parts(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, int]:
    encoded, unknown = [], 0
    for part in parts(text, CHARACTERS_AT_ONCE):
        encoded += tokenizer.encode([part])
        unknown += tokenizer.unknown([part], encoded[-1:])
    return np.concatenate(encoded), unknown


def parts(text: str, size: int) -> Iterator[str]:
    """A text in parts of at most `size` characters, cut after a line's end where there is one, or before a space.

    There GPT-2's kind of tokenizer begins a new word anyway, so that its ids are those of the whole.
    """
    start = 0
    while len(text) - start > size:
        stop = start + _cut(text[start : start + size + 1], size)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _cut(text: str, size: int) -> int:
    line_ends = [match.end() for match in LINE_END.finditer(text, size // 2)]
    spaces = [] if line_ends else [match.start() for match in SPACE.finditer(text, size // 2)]
    return [size, *spaces, *line_ends][-1]
