"""Corpora that the tests make themselves."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from jaxstab.data import DataConfig

SHARED = Path(__file__).parents[3] / "shared" / "data"
WORDS = ["the", "of", "and", "it", "naïve", "東京", "🙂", "loss", "weight", "spike", "norm", "layer", "token", "step"]


def make_texts(count: int, seed: int = 0, words: int = 120) -> list[str]:
    """Documents of random words, each different, with line breaks in them."""
    rng = random.Random(seed)
    return [
        f"document {seed}.{i}\n" + " ".join(rng.choices(WORDS, k=rng.randint(1, words))).replace(" it ", "\n")
        for i in range(count)
    ]


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)))
    return path


@pytest.fixture
def texts() -> list[str]:
    return make_texts(300)


@pytest.fixture
def config(tmp_path: Path, texts: list[str]) -> DataConfig:
    """Two jsonl files of 150 documents, packed at T=32 in this process."""
    (tmp_path / "corpus").mkdir()
    write_jsonl(tmp_path / "corpus" / "a.jsonl", texts[:150])
    write_jsonl(tmp_path / "corpus" / "b.jsonl", texts[150:])
    return DataConfig(
        source="text",
        files=(str(tmp_path / "corpus" / "*.jsonl"),),
        length=32,
        validation_fraction=0.1,
        cache_dir=str(tmp_path / "cache"),
        workers=1,
    )


@pytest.fixture
def environment() -> dict[str, str]:
    """For subprocesses: the project is importable."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture
def shared() -> Path:
    """Real data, kept outside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"real data is missing: {SHARED}")
    return SHARED
