"""The tokenizer that lies beside a model: its files, under the names that the data room reads."""

from __future__ import annotations

import shutil
from pathlib import Path

from jaxstab.data.tokenizers import END_TOKENS
from jaxstab.exchange.folder import read_json

# GPT-2's two files by Hugging Face's names and OpenAI's.
FILES = {"tokenizer.json": "tokenizer.json", "tokenizer.model": "tokenizer.model"}
GPT2_FILES = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}
BESIDE = ("tokenizer_config.json", "special_tokens_map.json")


def stage(source: Path, target: Path) -> dict[str, str]:
    """Copies a model's tokenizer.

    Args:
      source: the model's folder.
      target: an empty folder.

    Returns:
      The keys of the data that say how a document ends, `{"end_token": ""}` where the tokenizer itself says it; {}
      where no tokenizer is there that the data room reads.
    """
    named = next((names for names in (FILES, GPT2_FILES) if _copy(source, target, names)), None)
    if named is None:
        return {}
    _copy(source, target, {name: name for name in BESIDE})
    return {"end_token": "" if (target / "tokenizer.model").exists() else _end_token(target)}


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
