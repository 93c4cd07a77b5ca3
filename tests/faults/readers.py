"""Everything that reads a file which somebody else may have written, and a sound file for each to begin with.

A reader gives back what it reads or raises a UserError of one line: nothing else, whatever is in the file.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import lzma
import struct
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece
from safetensors.numpy import save
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

import main
from jaxstab.compare.cells import RESULT
from jaxstab.config import flatten
from jaxstab.data import DataConfig, files, load_tokenizer, prepare_tfds
from jaxstab.data.cache import read_manifest
from jaxstab.data.sources import documents as documents_of
from jaxstab.data.sources import open_source
from jaxstab.diagnose.foreign import read_log
from jaxstab.diagnose.tev import read as read_tev
from jaxstab.evaluate.lambada import FILE as LAMBADA
from jaxstab.evaluate.lambada import read as read_lambada
from jaxstab.exchange import find
from jaxstab.exchange.folder import read_json
from jaxstab.logging import read_measurements, read_metrics
from jaxstab.logging.columns import SCHEMA
from jaxstab.logging.tensorboard import TensorBoard
from jaxstab.train import incidents, journal, workdir
from jaxstab.train.config import Config


class Reader(NamedTuple):
    """A sound file's place below a directory, its content, what reads it, given that directory, and files beside it."""

    place: str
    content: bytes
    read: Callable[[Path], Any]
    beside: Mapping[str, bytes] = types.MappingProxyType({})

    def put(self, directory: Path, content: bytes) -> None:
        """Writes the file with another content, and those beside it."""
        for place, each in {**self.beside, self.place: content}.items():
            (directory / place).parent.mkdir(parents=True, exist_ok=True)
            (directory / place).write_bytes(each)


def documents(name: str) -> Callable[[Path], list[str]]:
    """Reads the documents of a corpus."""

    def read(directory: Path) -> list[str]:
        paths = files.find([f"{directory}/{name}"])
        return [text for path in paths for unit in files.file_units(path, "text") for text in unit(files.BadLines(2))]

    return read


def encoded(name: str, end: str = "") -> Callable[[Path], list[np.ndarray]]:
    """Loads a tokenizer and encodes with it."""

    def read(directory: Path) -> list[np.ndarray]:
        load_tokenizer.cache_clear()
        return load_tokenizer(str(directory / name), end).encode(["a</s>b <|endoftext|> 東 the"])

    return read


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def parquet(table: pa.Table) -> bytes:
    target = io.BytesIO()
    pq.write_table(table, target)
    return target.getvalue()


@functools.cache
def sentencepiece_model() -> bytes:
    target = io.BytesIO()
    texts = [f"the quick brown fox {number} jumps over {number * 7} lazy dogs" for number in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=target, vocab_size=60, minloglevel=2
    )
    return target.getvalue()


def bpe() -> bytes:
    alphabet = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({**alphabet, "th": 256, "the": 257}, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>")])
    return tokenizer.to_str().encode()


def unigram() -> bytes:
    pieces = [(piece, -float(number)) for number, piece in enumerate(("<unk>", "</s>", "a", "b", "▁the"))]
    return Tokenizer(models.Unigram(pieces, 0)).to_str().encode()


def llama2c_file() -> bytes:
    sizes = 4, 8, 1, 2, 1, 16, 8  # width, mlp_width, layers, heads, kv_heads, vocabulary, length
    count = 2 * 4 + 4 + 16 * 4 + 2 * 16 + 2 * 8 + 3 * 32 + 8 * 2
    return struct.pack("<7i", *sizes) + np.zeros(count, np.float32).tobytes()


def events() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        board = TensorBoard(Path(directory), -1)
        for step in range(1, 30):
            board.scalars(step, {"train/loss": 3.0 / step})
        board.close()
        (path,) = Path(directory, "tensorboard").iterdir()
        return path.read_bytes()


@functools.cache
def tfds_files() -> dict[str, bytes]:
    """A prepared set of one document, by file."""
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stderr(io.StringIO()):
        Path(directory, "a.txt").write_text("one two")
        config = DataConfig(source="text", files=(f"{directory}/a.txt",), cache_dir=directory)
        return {path.name: path.read_bytes() for path in prepare_tfds(config, directory, "x").iterdir()}


def in_x(*names: str) -> dict[str, bytes]:
    return {f"x/{name}": tfds_files()[name] for name in tfds_files() if name in names or "record" in name}


def tfds_documents(directory: Path) -> list[str]:
    config = DataConfig(source="tfds", name=str(directory / "x"), cache_dir=str(directory.parent / "notes"))
    return list(documents_of(open_source(config), files.BadLines(0)))


RECORDS = lines({"text": "one two"}, {"text": "Käse"}, {"text": "three\n\nfour"})
METRICS = lines(*({"step": step, "attempt": 0, "train/loss": 3.5, "train/grad_norm": "nan"} for step in range(1, 9)))
MANIFEST = {"digest": "d", "length": 4, "vocabulary": 257, "end": 256, "bad_lines": [], "unknown": 0, "recipe": {}} | {
    "splits": {
        name: {"documents": 1, "tokens": 9, "records": 2, "files": [{"name": "manifest.json", "bytes": 400}]}
        for name in ("train", "validation")
    }
}
ROLLBACK = {"kind": "rollback", "attempt": 1, "step": 9, "to": 4, "skip": [8, 9], "learning_rate": 0.5} | {
    "max_norm": 0.0, "until": 6, "reason": "why"
}  # fmt: skip
TABLE = pa.table([[1, 2], ["a", "a"], [[1.0], [2.0]]], schema=SCHEMA)
TRAINER_STATE = {"log_history": [{"step": step, "loss": 3.0 / step, "learning_rate": 1e-3} for step in range(1, 30)]}
INDEX = {"metadata": {"total_size": 64}, "weight_map": {"model.embed_tokens.weight": "model.safetensors"}}

READERS = {
    "jsonl": Reader("a.jsonl", RECORDS, documents("a.jsonl")),
    "text": Reader("a.txt", "Käse\n\nthe end\n".encode() * 9, documents("a.txt")),
    "gzip": Reader("a.jsonl.gz", gzip.compress(RECORDS, mtime=0) * 2, documents("a.jsonl.gz")),
    "xz": Reader("a.jsonl.xz", lzma.compress(RECORDS) * 2, documents("a.jsonl.xz")),
    "zstd": Reader("a.txt.zst", pa.compress(RECORDS, "zstd", asbytes=True) * 2, documents("a.txt.zst")),
    "parquet": Reader("a.parquet", parquet(pa.table({"text": ["one", "two", None]})), documents("a.parquet")),
    "manifest": Reader("manifest.json", json.dumps(MANIFEST).encode(), read_manifest),
    "BPE": Reader("tokenizer.json", bpe(), encoded("tokenizer.json")),
    "Unigram": Reader("tokenizer.json", unigram(), encoded("tokenizer.json")),
    "SentencePiece": Reader("a.model", sentencepiece_model(), encoded("a.model")),
    "config": Reader(
        "config.json", json.dumps({"config": flatten(Config()), "identity": {}}).encode(), workdir.saved_config
    ),
    "claimed config": Reader(
        "config.json",
        json.dumps({"config": flatten(Config()), "identity": {}}).encode(),
        lambda directory: workdir.claim(directory, Config(), {}, str),
    ),
    "journal": Reader(
        journal.FILE, lines({"kind": "skip", "skip": [3, 5]}, ROLLBACK), lambda directory: journal.read(directory, str)
    ),
    "incident": Reader(
        "incidents/9/incident.json",
        json.dumps({"step": 9, "checkpoint": 4, "reason": "why"}).encode(),
        lambda directory: (incidents.pinned(directory), incidents.read(directory, "9")),
        {"incidents/9/config.json": b"{}"},
    ),
    "metrics": Reader("metrics.jsonl", METRICS, lambda directory: read_metrics(directory / "metrics.jsonl")),
    "measurements": Reader("measurements/1-2.parquet", parquet(TABLE), read_measurements),
    "log of another trainer": Reader("log.jsonl", METRICS, lambda directory: read_log(directory / "log.jsonl")),
    "trainer_state.json": Reader("trainer_state.json", json.dumps(TRAINER_STATE).encode(), read_log),
    "TensorBoard's events": Reader("events.out.tfevents.1", events(), read_log),
    "TFDS info": Reader(
        "x/dataset_info.json", tfds_files()["dataset_info.json"], tfds_documents, in_x("features.json")
    ),
    "TFDS features": Reader(
        "x/features.json", tfds_files()["features.json"], tfds_documents, in_x("dataset_info.json")
    ),
    "LAMBADA": Reader(LAMBADA, RECORDS, read_lambada),
    "safetensors": Reader(
        "model.safetensors",
        save({"model.embed_tokens.weight": np.ones((8, 4), np.float32)}),
        lambda directory: list(read_tev(str(directory / "model.safetensors"))),
    ),
    "index": Reader(
        "model.safetensors.index.json",
        json.dumps(INDEX).encode(),
        lambda directory: list(read_tev(str(directory))),
        {"model.safetensors": save({"model.embed_tokens.weight": np.ones((8, 4), np.float32)})},
    ),
    "llama2.c": Reader("model.bin", llama2c_file(), lambda directory: find(directory / "model.bin")),
    "model's config.json": Reader(
        "config.json", b'{"model_type": "llama", "hidden_size": 64}', lambda d: read_json(d / "config.json")
    ),
    "result of a cell": Reader(RESULT, b'{"loss": 3.5}', lambda directory: read_json(directory / RESULT)),
    "config file's values": Reader("value", b"3", lambda directory: overridden(directory / "value")),
}


def overridden(path: Path) -> Any:
    """Parses a command line whose overrides are in a file: one line, or several for several keys."""
    keys = ("train.steps", "optimizer.learning_rate", "data.files", "model.remat", "stability.watch")
    values = path.read_bytes().decode("latin-1").split("\n")
    given = [f"--config.{key}={value}" for key, value in zip(keys, values, strict=False)]
    return main.parse(["main.py", "--config=configs/quickstart.py", "--workdir=x", *given]).config()
