"""Tokenizers whose end token no text can spell: a document ends where it ends, and not where its text says so."""

from __future__ import annotations

from typing import Any

from jaxstab.config import UserError


class EndTokenError(UserError):
    """A tokenizer has no use for a piece that ends documents and nothing else."""


# Noncharacters of Unicode stand around the piece's new name, by which no text in a corpus finds it.
HIDDEN = "\ufdd0{}\ufdd1"


def hidden(spec: dict[str, Any], piece: str) -> dict[str, Any]:
    """A tokenizer.json whose piece is reached by no text: neither as an added token nor as a piece of the model.

    An added token becomes a special one, which texts don't match where special tokens are encoded as plain text. In
    the model, whose pieces texts do match whatever they are for, the piece gets another name. All ids stay.

    Args:
      spec: the parsed tokenizer.json.
      piece: the one that ends a document.

    Raises:
      EndTokenError: the model gives that piece to what it doesn't know, or makes it by a merge.
    """
    model, added = spec["model"], spec.get("added_tokens") or []
    vocabulary, kind = model["vocab"], model.get("type", "BPE")
    if _stands_for_the_unknown(model, piece):
        raise EndTokenError(f"{piece} stands for what it doesn't know, too; name another piece in data.end_token")
    if kind == "BPE" and any(_joined(merge) == piece for merge in model.get("merges", [])):
        raise EndTokenError(f"{piece} is made by a merge, as of any text; name another piece in data.end_token")
    if isinstance(vocabulary, dict):
        in_model = piece in vocabulary
        vocabulary = {_renamed(name, piece): number for name, number in vocabulary.items()}
    else:
        in_model = any(name == piece for name, _ in vocabulary)
        vocabulary = [[_renamed(name, piece), score] for name, score in vocabulary]
    added = [{**token, "special": True} if token["content"] == piece else token for token in added]
    added = [token for token in added if not (in_model and token["content"] == piece)]
    return {**spec, "added_tokens": added, "model": {**model, "vocab": vocabulary}}


def _stands_for_the_unknown(model: dict[str, Any], piece: str) -> bool:
    number = model.get("unk_id")
    if isinstance(number, int) and isinstance(model["vocab"], list):
        return model["vocab"][number][0] == piece
    return model.get("unk_token") == piece and not byte_level(model)


def byte_level(model: dict[str, Any]) -> bool:
    """Whether a model has a piece for every byte of GPT-2's alphabet, so that it knows all texts."""
    return all(chr(code) in model["vocab"] for code in range(0x100, 0x120))


def _joined(merge: str | list[str]) -> str:
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)


def _renamed(name: str, piece: str) -> str:
    return HIDDEN.format(piece) if name == piece else name


def control(model: bytes, number: int) -> bytes:
    """A SentencePiece model whose piece is a control symbol, as `</s>` is, which no text encodes to.

    Args:
      model: the serialized model.
      number: the id of the piece that ends a document.

    Raises:
      EndTokenError: the piece is the unknown one, or stands for a byte.
    """
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2
    parsed = protocol.ModelProto()
    parsed.ParseFromString(model)
    piece = parsed.pieces[number]
    kinds = protocol.ModelProto.SentencePiece
    if piece.type in (kinds.UNKNOWN, kinds.BYTE):
        raise EndTokenError(f"{piece.piece} stands for other text, too; name another piece in data.end_token")
    piece.type = kinds.CONTROL
    return parsed.SerializeToString()
