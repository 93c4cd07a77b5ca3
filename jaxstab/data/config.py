"""What to train on: the keys of the data room."""

from __future__ import annotations

import dataclasses

from jaxstab.config import ConfigError, Options, Range, local_path, option


@dataclasses.dataclass(frozen=True)
class DataConfig(Options):
    """Documents, how they become tokens, and in what order they are read."""

    source: str = option(
        "stdlib",
        "Where documents come from: Python's own standard library, local files, a TFDS set, the Hugging Face hub.",
        choices=("stdlib", "text", "tfds", "huggingface"),
    )
    files: tuple[str, ...] = option((), "text: globs of .txt, .jsonl/.json or .parquet, plain or .gz/.xz/.zst.")
    name: str = option(
        "",
        "tfds: name (set/config:version) or prepared directory. "
        "huggingface: hub id, a saved data set's directory, or refinedweb, c4, fineweb.",
    )
    subset: str = option("", "huggingface: the data set's configuration; empty: its default.")
    split: str = option("train", "tfds, huggingface: the set's split that is read (and then split by document hash).")
    data_dir: str = option("", "tfds: where sets are prepared; empty: ~/tensorflow_datasets.")
    field: str = option("text", "The field that holds the text (refinedweb knows its own).")
    tokenizer: str = option(
        "bytes",
        "bytes, or a path: a Hugging Face tokenizer.json, a SentencePiece .model, GPT-2's encoder.json "
        "(with vocab.bpe beside it), or a directory with one of them.",
    )
    end_token: str = option("", "Piece that ends a document; empty: the tokenizer's usual one (<|endoftext|>, </s>).")
    length: int = option(256, "Tokens predicted per record, T; a record holds T+1.", Range(1))
    validation_fraction: float = option(
        0.01, "Share of documents held out, by the hash of their text: 0 none, 1 all.", Range(0, 1)
    )
    max_tokens: int = option(
        0, "Stop after the work unit in which training reaches this many tokens; 0: never.", Range(0)
    )
    seed: int = option(
        0, "Seed of the order of training records; the initial weights have another, train.seed.", Range(0)
    )
    bad_lines: int = option(0, "Lines or rows without usable text that are skipped; one more is an error.", Range(0))
    cache_dir: str = option(".cache/data", "Where packed records are kept.")
    workers: int = option(0, "Processes that tokenise; 0: one per core.", Range(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        local_path(self.cache_dir, "data.cache_dir")
        if self.source == "text" and not self.files:
            raise ConfigError('data.source=text needs data.files, for instance data.files=("corpus/*.jsonl.gz",)')
        if self.source in ("tfds", "huggingface") and not self.name:
            raise ConfigError(f"data.source={self.source} needs data.name, the data set's name or directory")
