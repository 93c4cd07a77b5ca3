"""Tokenizers behind one small protocol: bytes, Hugging Face's tokenizer.json, SentencePiece, GPT-2's two files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxstab.config import UserError

END = "<|endoftext|>"
END_TOKENS = (END, "<|end_of_text|>", "</s>", "<eos>")
IN_A_DIRECTORY = ("tokenizer.json", "encoder.json", "tokenizer.model")


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        vocabulary: ids are below it.
        end: the id that follows every document; no text encodes to it.
        digest: SHA-256 of what defines the tokenizer.
    """

    vocabulary: int
    end: int
    digest: str

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int array of ids per text, with no special tokens added."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, without end tokens."""


class ByteTokenizer:
    """UTF-8 bytes: ids 0 to 255 are bytes, 256 ends a document."""

    vocabulary = 257
    end = 256
    digest = hashlib.sha256(b"jaxstab bytes, end 256").hexdigest()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library; special tokens in a document's text are encoded as plain text."""

    def __init__(self, tokenizer, digest: str, end: int):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1
        self.end = end
        self.digest = digest

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids if i != self.end])


class SentencePieceTokenizer:
    """A SentencePiece model; its end-of-sentence piece ends a document."""

    def __init__(self, processor, digest: str, end: int):
        self._processor = processor
        self.vocabulary = processor.vocab_size()
        self.end = end
        self.digest = digest

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(ids, np.int32) for ids in self._processor.encode(list(texts), num_threads=1)]

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids if i != self.end])


@functools.lru_cache(maxsize=4)
def load_tokenizer(tokenizer: str, end_token: str = "") -> Tokenizer:
    """The tokenizer that `DataConfig.tokenizer` names.

    Args:
        tokenizer: "bytes" or a path; see `DataConfig`.
        end_token: the piece that ends a document; "" takes the first usual one that the tokenizer has.

    Raises:
        UserError: the path is missing, isn't that of a tokenizer, or the tokenizer has no such end token.
    """
    if tokenizer == "bytes":
        if end_token:
            raise UserError(f"data.end_token={end_token}: the bytes tokenizer has its own; leave it empty")
        return ByteTokenizer()
    path = _file(Path(tokenizer).expanduser())
    try:
        load = _sentencepiece if path.suffix == ".model" else _huggingface
        return load(path, end_token)
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(f"data.tokenizer={path} is no tokenizer: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _file(path: Path) -> Path:
    if path.is_dir():
        inside = [path / name for name in IN_A_DIRECTORY if (path / name).is_file()]
        if not inside:
            raise UserError(f"data.tokenizer={path}: the directory has none of {', '.join(IN_A_DIRECTORY)}")
        return inside[0]
    if not path.is_file():
        raise UserError(f"data.tokenizer={path} is missing; give bytes, or the path of a tokenizer")
    if path.suffix not in (".json", ".model"):
        raise UserError(f"data.tokenizer={path} is no tokenizer: expected a .json (Hugging Face, GPT-2) or .model file")
    return path


def _huggingface(path: Path, end_token: str) -> HuggingFaceTokenizer:
    paths = [path]
    if path.name.endswith("encoder.json"):
        paths.append(_merges(path))
    tokenizer = library_tokenizer(path)
    end = _end(tokenizer.get_vocab(), end_token, path)
    return HuggingFaceTokenizer(tokenizer, _digest(paths, end), end)


def library_tokenizer(path: Path):
    """The tokenizer, of the library `tokenizers`, of a tokenizer.json or of GPT-2's encoder.json."""
    from tokenizers import Tokenizer as Library

    return _gpt2(path, _merges(path)) if path.name.endswith("encoder.json") else Library.from_file(str(path))


def _merges(encoder: Path) -> Path:
    return encoder.with_name(encoder.name.removesuffix("encoder.json") + "vocab.bpe")


def _gpt2(encoder: Path, merges: Path):
    """GPT-2's byte-level BPE from the files that OpenAI published."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    if not merges.is_file():
        raise UserError(f"data.tokenizer={encoder}: GPT-2's merges are missing, {merges} should lie beside it")
    tokenizer = Library(models.BPE.from_file(str(encoder), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(path: Path, end_token: str) -> SentencePieceTokenizer:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(path))
    pieces = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    end = processor.eos_id() if not end_token and processor.eos_id() >= 0 else _end(pieces, end_token, path)
    return SentencePieceTokenizer(processor, _digest([path], end), end)


def _end(vocabulary: dict[str, int], end_token: str, path: Path) -> int:
    for token in (end_token,) if end_token else END_TOKENS:
        if token in vocabulary:
            return vocabulary[token]
    wanted = end_token or " or ".join(END_TOKENS)
    raise UserError(f"data.tokenizer={path} has no piece {wanted}; name the one that ends a document in data.end_token")


def _digest(paths: list[Path], end: int) -> str:
    content = hashlib.sha256(str(end).encode())
    for path in paths:
        content.update(hashlib.sha256(path.read_bytes()).digest())
    return content.hexdigest()
