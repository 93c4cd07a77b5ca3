"""llama2.c's files: a Llama in another envelope, with its tokenizer (github.com/karpathy/llama2.c: run.c, export.py).

Version 0 begins with seven int32 and has no name; version 1 begins with "ak42"; version 2 is int8 and is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab.config import UserError
from jaxstab.exchange.tensors import Tensor

MAGIC, HEADER_1 = 0x616B3432, 256
EPS = 1e-5
SPACE = "▁"
LAYER = "model.layers.{}."
# Stacks over layers in the order of the file, by Llama's names.
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
ROTATED = ATTENTION[:2]


@dataclasses.dataclass(frozen=True)
class Pairs(Tensor):
    """A projection whose rotary embedding turns neighbours (2i, 2i + 1); a Llama's turns halves (i, i + K/2)."""

    head_dim: int = 2

    def array(self) -> np.ndarray:
        """The rows in the order of halves, head by head."""
        pairs = super().array().reshape(-1, self.head_dim // 2, 2, self.shape[1])
        return pairs.swapaxes(1, 2).reshape(self.shape)


def llama(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json of a Llama and its tensors, of a llama2.c file.

    Raises:
      UserError: the file isn't of llama2.c, is of its int8 version, or has another size than its header tells.
    """
    with open(path, "rb") as file:
        start = file.read(HEADER_1)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise UserError(f"{path} is a pickle, which runs code when it is read; none is read here")
    if len(start) < 28:
        raise UserError(f"{path} is no file of llama2.c: it has {len(start)} bytes")
    magic, version = struct.unpack("<Ii", start[:8])
    if magic == MAGIC and version != 1:
        raise UserError(f"{path} is of llama2.c's version {version}, which is quantized to int8; known are 0 and 1")
    if magic == MAGIC and len(start) < HEADER_1:
        raise UserError(f"{path} is no file of llama2.c: it ends within its header")
    numbers = struct.unpack("<7i", start[8:36] if magic == MAGIC else start[:28])
    is_tied = bool(start[36]) if magic == MAGIC else numbers[5] > 0
    width, mlp_width, layers, heads, kv_heads, vocabulary, length = (*numbers[:5], abs(numbers[5]), numbers[6])
    if min(width, mlp_width, layers, heads, kv_heads, vocabulary, length) < 1 or width % heads or heads % kv_heads:
        raise UserError(f"{path} is no file of llama2.c: its header has the sizes {', '.join(map(str, numbers))}")
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "rms_norm_eps": EPS,
        "tie_word_embeddings": is_tied,
    }
    return config, _tensors(path, config, HEADER_1 if magic == MAGIC else 28, magic == MAGIC)


def _tensors(path: Path, config: dict[str, Any], offset: int, is_named: bool) -> dict[str, Tensor]:
    """The tensors, laid one after the other from `offset` on to the end of the file."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    tensors: dict[str, Tensor] = {}
    size = path.stat().st_size
    for name, shape in _version_1(config) if is_named else _version_0(config):
        if offset > size:  # before as many tensors as a damaged header tells of take all memory
            raise UserError(f"{path} is no file of llama2.c: its header tells of more than its {size:,} bytes")
        if any(f".{each}." in name for each in ROTATED):
            tensors[name] = Pairs(path, name, "F32", shape, offset, head_dim)
        elif name:
            tensors[name] = Tensor(path, name, "F32", shape, offset)
        offset += 4 * math.prod(shape)
    if offset != size:
        raise UserError(f"{path} is no file of llama2.c: its header tells of {offset:,} bytes, it has {size:,}")
    return tensors


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, mlp_width = config["hidden_size"], config["intermediate_size"]
    kv_width = width // config["num_attention_heads"] * config["num_key_value_heads"]
    square = dict.fromkeys(ATTENTION, (width, width))
    return {
        **dict.fromkeys(NORMS, (width,)),
        **square,
        **dict.fromkeys(ATTENTION[1:3], (kv_width, width)),
        **dict.fromkeys(MLP, (mlp_width, width)),
        "mlp.down_proj": (width, mlp_width),
    }


def _stacks(config: dict[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    shapes = _shapes(config)
    for name in names:
        for layer in range(config["num_hidden_layers"]):
            yield f"{LAYER.format(layer)}{name}.weight", shapes[name]


def _version_0(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of everything in the file, "" for the rotary tables, which are computed here."""
    matrix = config["vocab_size"], config["hidden_size"]
    yield "model.embed_tokens.weight", matrix
    yield from _stacks(config, (NORMS[0], *ATTENTION, NORMS[1], *MLP))
    yield "model.norm.weight", matrix[1:]
    yield "", (config["max_position_embeddings"], matrix[1] // config["num_attention_heads"])
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", matrix


def _version_1(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    matrix = config["vocab_size"], config["hidden_size"]
    yield from _stacks(config, NORMS)
    yield "model.norm.weight", matrix[1:]
    yield "model.embed_tokens.weight", matrix
    yield from _stacks(config, (*ATTENTION, *MLP))
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", matrix


def tokenizer_beside(path: Path) -> Path | None:
    """The tokenizer beside a model's file: tok512.bin for 512 pieces, or tokenizer.bin; None where there is none."""
    vocabulary = llama(path)[0]["vocab_size"]
    named = (path.with_name(f"tok{vocabulary}.bin"), path.with_name("tokenizer.bin"))
    return next((each for each in named if each.is_file()), None)


def write_tokenizer_json(path: Path, target: Path) -> None:
    """Writes llama2.c's tokenizer as a tokenizer.json: byte-pair merges by score, bytes where no piece is.

    Raises:
      UserError: the file isn't a tokenizer of llama2.c.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    pieces = _pieces(path)
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = [
        (score, vocabulary[piece], (piece[:cut], piece[cut:]))
        for piece, score in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    ordered = [pair for _, _, pair in sorted(merges, key=lambda merge: (-merge[0], merge[1]))]
    model = models.BPE(vocabulary, ordered, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    target.write_text(json.dumps(json.loads(tokenizer.to_str())))


def _pieces(path: Path) -> list[tuple[str, float]]:
    """(piece, score) of every id; spaces are written as SentencePiece does."""
    content, pieces = path.read_bytes(), []
    place = 4  # after the length of the longest piece
    try:
        while place < len(content):
            score, size = struct.unpack_from("<fi", content, place)
            if not 0 <= size <= len(content) - place - 8:
                raise ValueError(f"a piece of {size} bytes")
            pieces.append((content[place + 8 : place + 8 + size].decode(), score))
            place += 8 + size
    except (struct.error, ValueError) as error:
        raise UserError(f"{path} is no tokenizer of llama2.c: {error}") from error
    special = {0: "<unk>", 1: "<s>", 2: "</s>"}
    return [(special.get(n, piece.replace(" ", SPACE)), score) for n, (piece, score) in enumerate(pieces)]
