"""Documents to packed records: tokenised in parallel, unit by unit, and packed in the units' order.

The tokens of a split (each document followed by the end token) are one stream, in the source's order. A record is T+1
of them, and the next record begins with the last token of this one, so that every token but the first is predicted
once. Nothing depends on the number of processes, and no more than a few million tokens are in memory.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxstab.data.config import DataConfig
from jaxstab.data.console import console
from jaxstab.data.encoding import encode
from jaxstab.data.files import BadLines, Unit
from jaxstab.data.parallel import cores, in_order
from jaxstab.data.records import SplitWriter, token_dtype
from jaxstab.data.sources import Source
from jaxstab.data.tokenizers import Tokenizer, load_tokenizer

SPLITS = ("train", "validation")
DOCUMENTS_PER_CALL = 64
TOKENS_PER_CHUNK = 1 << 22


def split_of(text: str, validation_fraction: float) -> str:
    """The split of a document: a function of its text alone, so that copies of it land together."""
    hashed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return "validation" if hashed < validation_fraction * 2**64 else "train"


@dataclasses.dataclass
class Tokenised:
    """The result of one unit: a file of raw tokens per split, the number of documents in each, the bad lines, and how
    much of the text the tokenizer has no piece for."""

    paths: dict[str, Path]
    documents: dict[str, int]
    bad: list[str]
    unknown: int = 0

    def chunks(self, split: str, dtype: np.dtype) -> Iterator[np.ndarray]:
        """The unit's tokens of a split; its file is deleted at the end."""
        with open(self.paths[split], "rb") as file:
            while len(tokens := np.fromfile(file, dtype, TOKENS_PER_CHUNK)):
                yield tokens
        self.paths[split].unlink()


def tokenise(config: DataConfig, directory: Path, numbered: tuple[int, Unit]) -> Tokenised:
    """Writes the tokens of one unit to files in `directory`; runs in any process."""
    number, unit = numbered
    tokenizer = load_tokenizer(config.tokenizer, config.end_token)
    dtype = token_dtype(tokenizer.vocabulary)
    bad = BadLines(config.bad_lines)
    done = Tokenised(
        {name: directory / f"{number:07d}.{name}" for name in SPLITS}, dict.fromkeys(SPLITS, 0), bad.places
    )
    texts = filter(None, unit(bad))
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(path, "wb")) for name, path in done.paths.items()}
        while batch := list(itertools.islice(texts, DOCUMENTS_PER_CALL)):
            encoded, unknown = encode(tokenizer, batch)
            done.unknown += unknown
            for text, ids in zip(batch, encoded, strict=True):
                name = split_of(text, config.validation_fraction)
                done.documents[name] += 1
                files[name].write(np.append(ids.astype(dtype), dtype.type(tokenizer.end)).tobytes())
    return done


def pack(config: DataConfig, tokenizer: Tokenizer, source: Source, scratch: Path, out: Path) -> dict[str, Any]:
    """Packs the source's documents into record files in `out`, by way of `scratch`; returns the manifest's counts."""
    units = source.units()
    workers = max(1, min(config.workers or cores(), len(units)))
    console.print(f"Tokenising {source.title}, by {workers} process{'es' * (workers > 1)}", soft_wrap=True)
    dtype = token_dtype(tokenizer.vocabulary)
    writers = {name: SplitWriter(out, name, config.length, dtype) for name in SPLITS}
    bad, unknown = BadLines(config.bad_lines), 0
    task = functools.partial(tokenise, config, scratch)
    with _progress(len(units)) as advance, closing(in_order(task, enumerate(units), workers)) as results:
        for done in results:
            _take(done, writers, dtype)
            unknown += done.unknown
            for where in done.bad:
                bad.add(where)
            advance(sum(writer.tokens for writer in writers.values()))
            if 0 < config.max_tokens <= writers["train"].tokens:
                break
    splits = {name: writer.close() for name, writer in writers.items()}
    return {"splits": splits, "bad_lines": bad.places, "unknown": unknown}


def _take(done: Tokenised, writers: dict[str, SplitWriter], dtype: np.dtype) -> None:
    for name, writer in writers.items():
        writer.documents += done.documents[name]
        for tokens in done.chunks(name, dtype):
            writer.add(tokens)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar over work units; yields a function that takes, after each unit, the number of tokens packed so far."""
    count = TextColumn("{task.fields[tokens]:,} tokens, {task.fields[rate]:,.0f}/s")
    columns = (TextColumn("Tokenising"), BarColumn(), MofNCompleteColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=total, tokens=0, rate=0.0)

        def advance(tokens: int) -> None:
            seconds = progress.tasks[0].elapsed or 1e-9
            progress.update(bar, advance=1, tokens=tokens, rate=tokens / seconds)

        yield advance
