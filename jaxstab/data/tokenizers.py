"""Tokenizers behind one small protocol: bytes, Hugging Face's tokenizer.json, SentencePiece, GPT-2's two files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxstab import safe_json
from jaxstab.config import UserError
from jaxstab.data.end_token import EndTokenError, byte_level, control, hidden

END = "<|endoftext|>"
END_TOKENS = (END, "<|end_of_text|>", "</s>", "<eos>")
IN_A_DIRECTORY = ("tokenizer.json", "encoder.json", "tokenizer.model")
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\n")  # a token in base64, and its rank


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

    def unknown(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> int:
        """How much of the texts, as `encode` has encoded them, has no piece: unknown pieces, or characters left out."""


class ByteTokenizer:
    """UTF-8 bytes: ids 0 to 255 are bytes, 256 ends a document."""

    vocabulary = 257
    end = 256
    digest = hashlib.sha256(b"jaxstab bytes, end 256").hexdigest()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def unknown(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> int:
        return 0


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library; special tokens in a document's text are encoded as plain text."""

    def __init__(self, tokenizer, path: Path, digest: str, vocabulary: int, end: int, unknown: int | None, drops: bool):
        """`tokenizer` as `end_token.hidden` has it; `drops` where it leaves out what it has no piece for."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer, self._path = tokenizer, path
        self._unknown, self._drops = unknown, drops
        self.vocabulary = vocabulary
        self.end = end
        self.digest = digest

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        with _encoding(self._path):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [_checked(np.array(encoding.ids, np.int32), self) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids if i != self.end])

    def unknown(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> int:
        if self._unknown is not None:
            return sum(int(np.count_nonzero(ids == self._unknown)) for ids in encoded)
        return sum(map(self._dropped, texts)) if self._drops else 0

    def _dropped(self, text: str) -> int:
        """Characters, other than spaces, that no piece stands for."""
        stood_for = np.zeros(len(text), bool)
        for start, stop in self._tokenizer.encode(text, add_special_tokens=False).offsets:
            stood_for[start:stop] = True
        return sum(not text[i].isspace() for i in np.flatnonzero(~stood_for))


class SentencePieceTokenizer:
    """A SentencePiece model; its end-of-sentence piece ends a document."""

    def __init__(self, processor, path: Path, digest: str, end: int):
        self._processor, self._path = processor, path
        self.vocabulary = processor.vocab_size()
        self.end = end
        self.digest = digest

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        with _encoding(self._path):
            encoded = self._processor.encode(list(texts), num_threads=1)
        return [_checked(np.array(ids, np.int32), self) for ids in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids if i != self.end])

    def unknown(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> int:
        return sum(int(np.count_nonzero(ids == self._processor.unk_id())) for ids in encoded)


@contextlib.contextmanager
def _encoding(path: Path) -> Iterator[None]:
    """Turns what a library raises at a text that its tokenizer can't encode into one line."""
    try:
        yield
    except Exception as error:  # both libraries raise bare exceptions
        raise UserError(f"data.tokenizer={path} can't encode a document: {_reason(error)}") from error


def _checked(ids: np.ndarray, tokenizer: HuggingFaceTokenizer | SentencePieceTokenizer) -> np.ndarray:
    if np.any(ids == tokenizer.end):
        raise UserError(f"data.tokenizer={tokenizer._path} makes its end token of the text of a document")
    return ids


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
    except EndTokenError as error:
        raise UserError(f"data.tokenizer={path}: {error}") from error
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
    from tokenizers import Tokenizer as Library

    paths = [path, _merges(path)] if path.name.endswith("encoder.json") else [path]
    original = library_tokenizer(path)
    pieces = original.get_vocab()
    end = _end(pieces, end_token, path)
    spec = safe_json.loads(original.to_str())
    tokenizer = Library.from_str(json.dumps(hidden(spec, original.id_to_token(end))))
    moved = [piece for piece, number in tokenizer.get_vocab().items() if pieces.get(piece, end) != number]
    if moved:
        raise UserError(f"data.tokenizer={path}: the ids of {moved[0]} and others depend on their order")
    unknown = _unknown(spec["model"], pieces, path)
    drops = spec["model"]["type"] == "BPE" and not (spec["model"].get("byte_fallback") or byte_level(spec["model"]))
    return HuggingFaceTokenizer(tokenizer, path, _digest(paths, end), max(pieces.values()) + 1, end, unknown, drops)


def _unknown(model: dict[str, Any], pieces: dict[str, int], path: Path) -> int | None:
    """The id of what a model has no piece for; None where it has none."""
    if model["type"] == "Unigram":
        return model["unk_id"]
    piece = model.get("unk_token")
    if model["type"] in ("WordLevel", "WordPiece") and piece not in model["vocab"]:
        raise UserError(f"data.tokenizer={path} lacks its unknown piece {piece}, which words that it doesn't know need")
    return pieces.get(piece) if piece else None


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

    content = path.read_bytes()
    if TIKTOKEN_LINE.match(content):
        raise UserError(f"data.tokenizer={path} is a file of tiktoken: take the model's tokenizer.json instead")
    processor = SentencePieceProcessor(model_proto=content)
    pieces = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    end = processor.eos_id() if not end_token and processor.eos_id() >= 0 else _end(pieces, end_token, path)
    processor = SentencePieceProcessor(model_proto=control(content, end))
    return SentencePieceTokenizer(processor, path, _digest([path], end), end)


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
