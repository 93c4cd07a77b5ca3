"""The tokenizer that lies beside a model: its files, under the names that the data room reads, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jaxstab.data import DataConfig, Tokenizer
from jaxstab.data.tokenizers import END, END_TOKENS, IN_A_DIRECTORY, library_tokenizer
from jaxstab.exchange import llama2c
from jaxstab.exchange.folder import read_json

# GPT-2's two files by Hugging Face's names and OpenAI's.
FILES = {"tokenizer.json": "tokenizer.json", "tokenizer.model": "tokenizer.model"}
GPT2_FILES = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}
BESIDE = ("tokenizer_config.json", "special_tokens_map.json")


def stage(source: Path, target: Path) -> dict[str, str]:
    """Copies a model's tokenizer.

    Args:
      source: the model's folder, or its file of llama2.c.
      target: an empty folder.

    Returns:
      The keys of the data that say how a document ends, `{"end_token": ""}` where the tokenizer itself says it; {}
      where no tokenizer is there that the data room reads.
    """
    if source.is_file():
        return _stage_llama2c(source, target)
    named = next((names for names in (FILES, GPT2_FILES) if _copy(source, target, names)), None)
    if named is None:
        return {}
    _copy(source, target, {name: name for name in BESIDE})
    return {"end_token": "" if (target / "tokenizer.model").exists() else _end_token(target)}


def _stage_llama2c(source: Path, target: Path) -> dict[str, str]:
    beside = llama2c.tokenizer_beside(source)
    if beside is None:
        return {}
    llama2c.write_tokenizer_json(beside, target / "tokenizer.json")
    return {"end_token": "<s>"}  # which parts the stories that these models were trained on


def _copy(source: Path, target: Path, names: dict[str, str]) -> list[Path]:
    there = {name: new for name, new in names.items() if (source / name).is_file()}
    if names is GPT2_FILES and len(there) < len(names):
        return []
    return [Path(shutil.copyfile(source / name, target / new)) for name, new in there.items()]


def _end_token(folder: Path) -> str:
    """The end of a document by tokenizer_config.json, where it is none that is found without being named."""
    path = folder / BESIDE[0]
    end = read_json(path).get("eos_token") if path.is_file() else None
    end = end.get("content") if isinstance(end, dict) else end
    return end if isinstance(end, str) and end not in END_TOKENS else ""


def write_tokenizer(config: DataConfig, tokenizer: Tokenizer, folder: Path, length: int) -> None:
    """Writes the tokenizer of a run as transformers reads it, with the token that ends a document.

    Args:
      config: names it.
      tokenizer: the same, loaded.
      folder: exists.
      length: the model's longest sequence.
    """
    path = Path(config.tokenizer).expanduser()
    path = next((path / name for name in IN_A_DIRECTORY if (path / name).is_file()), path)
    if path.suffix == ".model":
        shutil.copyfile(path, folder / "tokenizer.model")
        settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": False}
    else:
        fast = byte_tokenizer() if config.tokenizer == "bytes" else library_tokenizer(path)
        fast.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": fast.id_to_token(tokenizer.end)}
    # A special token's name in a text, as WikiText's <unk>, is text, as in training.
    settings |= {"split_special_tokens": True}
    settings |= {"model_max_length": length, "clean_up_tokenization_spaces": False}
    (folder / BESIDE[0]).write_text(json.dumps(settings, indent=1))


def byte_tokenizer() -> Any:
    """The tokenizer of bytes, by the library `tokenizers`: the same ids."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    fast = Library(models.BPE({character: byte for byte, character in enumerate(_byte_characters())}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(END, normalized=False)])
    return fast


def _byte_characters() -> list[str]:
    """The character that stands for each byte in GPT-2's tokenizer: its own where that is printed, others from 256."""
    printed = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printed else chr(next(others)) for byte in range(256)]
