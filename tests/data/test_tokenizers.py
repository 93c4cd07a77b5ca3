"""Tokenizers: what goes in comes out, the libraries' own ids, and a file that is none gives one line."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer, models

from jaxstab.config import UserError
from jaxstab.data import load_tokenizer, train_tokenizer
from tests.data.conftest import make_texts

TEXTS = ["Hello world", "  naïve 東京\n\n🙂\t", "", "a<|endoftext|>b</s>c"]


@pytest.fixture
def sentencepiece_model(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_texts(300)),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return tmp_path / "sp.model"


def check_round_trip(tokenizer):
    for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        assert np.all((ids >= 0) & (ids < tokenizer.vocabulary)) and tokenizer.end not in ids
        assert tokenizer.decode([*ids, tokenizer.end]) == text


def test_bytes():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocabulary, tokenizer.end) == (257, 256)
    assert tokenizer.encode(["é"])[0].tolist() == [0xC3, 0xA9]
    assert tokenizer.decode([0xC3]) == "�"
    check_round_trip(tokenizer)


def test_a_trained_bpe_round_trips_and_never_makes_an_end_token(config, tmp_path):
    path = train_tokenizer(config, 400, tmp_path / "made")
    assert path == tmp_path / "made" / "tokenizer.json"
    tokenizer = load_tokenizer(str(tmp_path / "made"))
    assert tokenizer.vocabulary == 400 == Tokenizer.from_file(str(path)).get_vocab_size()
    check_round_trip(tokenizer)
    assert len(tokenizer.encode(["the weight spike"])[0]) < 6


def test_training_gives_the_same_file_in_another_process(config, tmp_path, environment):
    here = train_tokenizer(config, 350, tmp_path / "here.json").read_bytes()
    code = f"from jaxstab.data import *; train_tokenizer({config!r}, 350, {str(tmp_path / 'there.json')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment | {"PYTHONHASHSEED": "5"})
    assert (tmp_path / "there.json").read_bytes() == here


@pytest.mark.parametrize(("size", "message"), [(256, "257 are the bytes"), (100_000, "gives only")])
def test_a_vocabulary_that_cannot_be_made(config, tmp_path, size, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer(config, size, tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


def test_sentencepiece(sentencepiece_model):
    tokenizer = load_tokenizer(str(sentencepiece_model))
    library = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    assert (tokenizer.vocabulary, tokenizer.end) == (400, library.eos_id())
    assert [ids.tolist() for ids in tokenizer.encode(TEXTS)] == [library.encode(text) for text in TEXTS]
    check_round_trip(tokenizer)


def test_digest_follows_the_content_and_the_end_token(sentencepiece_model, tmp_path):
    copy = tmp_path / "copy.model"
    copy.write_bytes(sentencepiece_model.read_bytes())
    same, other = load_tokenizer(str(copy)), load_tokenizer(str(copy), end_token="<s>")
    assert same.digest == load_tokenizer(str(sentencepiece_model)).digest != other.digest
    assert (same.end, other.end) == (2, 1)


def small_gpt2(directory, names=("encoder.json", "vocab.bpe")):
    """Two files in OpenAI's form: the byte alphabet, three merges, and the end token last."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    pieces = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges), "<|endoftext|>"]
    (directory / names[0]).write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (directory / names[1]).write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in merges))
    return pieces


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("x-encoder.json", "x-vocab.bpe")])
def test_gpt2_files(tmp_path, names):
    pieces = small_gpt2(tmp_path, names)
    tokenizer = load_tokenizer(str(tmp_path / names[0]) if "x-" in names[0] else str(tmp_path))
    assert tokenizer.vocabulary == len(pieces) and tokenizer.end == len(pieces) - 1
    assert [pieces[i] for i in tokenizer.encode(["hello hell"])[0]] == ["hell", "o", "Ġ", "hell"]
    check_round_trip(tokenizer)


def test_gpt2_ids_are_openais(shared):
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "gpt2-encoder.json"))
    assert (tokenizer.vocabulary, tokenizer.end) == (50257, 50256)
    assert tokenizer.encode(["Hello world"])[0].tolist() == [15496, 995]
    check_round_trip(tokenizer)


def test_mistrals_sentencepiece(shared):
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "mistral-v1-32000.model"))
    assert (tokenizer.vocabulary, tokenizer.end) == (32000, 2)
    assert tokenizer.encode(["Hello world"])[0].tolist() == [22557, 1526]
    check_round_trip(tokenizer)


def test_what_is_no_tokenizer_gives_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone").mkdir()
    small_gpt2(tmp_path / "alone")
    (tmp_path / "alone" / "vocab.bpe").unlink()
    (tmp_path / "none.json").write_text("{}")
    (tmp_path / "none.model").write_text("no model")
    (tmp_path / "none.txt").write_text("no tokenizer")
    endless = Tokenizer(models.BPE({"a": 0}, []))
    endless.save(str(tmp_path / "endless.json"))
    cases = {
        "missing.json": "is missing",
        "empty": "has none of tokenizer.json, encoder.json",
        "alone": "vocab.bpe should lie beside it",
        "none.json": "is no tokenizer",
        "none.model": "is no tokenizer",
        "none.txt": "expected a .json",
        "endless.json": "name the one that ends a document in data.end_token",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            load_tokenizer(str(tmp_path / name))
        assert "\n" not in str(error.value)
    assert load_tokenizer(str(tmp_path / "endless.json"), "a").end == 0
    with pytest.raises(UserError, match="has no piece b"):
        load_tokenizer(str(tmp_path / "endless.json"), "b")


def test_bytes_digest_is_fixed():
    """Checkpoints carry it: a change makes them refuse their own data."""
    assert load_tokenizer("bytes").digest == hashlib.sha256(b"jaxstab bytes, end 256").hexdigest()
