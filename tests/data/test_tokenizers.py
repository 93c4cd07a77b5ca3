"""Tokenizers: what goes in comes out, the libraries' own ids, and a file that is none gives one line."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from jaxstab.config import UserError
from jaxstab.data import encoding, load_tokenizer, train_tokenizer
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


def test_a_file_is_written_where_it_was_asked_for(config, tmp_path):
    assert train_tokenizer(config, 300, tmp_path / "folder") == tmp_path / "folder" / "tokenizer.json"
    assert train_tokenizer(config, 300, tmp_path / "a.json") == tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.model is neither a \.json file nor a directory"):
        train_tokenizer(config, 300, tmp_path / "a.model")
    assert not (tmp_path / "a.model").exists()


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


def added(content, special):
    return AddedToken(content, special=special, normalized=False)


def byte_level_bpe(end, special):
    """A BPE of GPT-2's kind, whose end token is an added one, or a piece of the model where `special` is None."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, *([end] if special is None else [])])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=special is None))
    if special is not None:
        tokenizer.add_tokens([added(end, special), added("<extra>", True)])
    return tokenizer


def unigram(end):
    pieces = ["<unk>", end, *"a<b/>s", "▁"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(number)) for number, piece in enumerate(pieces)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return tokenizer


def words(kind, end):
    tokenizer = Tokenizer(kind({"[UNK]": 0, end: 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


SPELLED = {
    "BPE, a special token": lambda end: byte_level_bpe(end, True),
    "BPE, an added token": lambda end: byte_level_bpe(end, False),
    "BPE, a piece": lambda end: byte_level_bpe(end, None),
    "Unigram": unigram,
    "WordLevel": lambda end: words(models.WordLevel, end),
    "WordPiece": lambda end: words(models.WordPiece, end),
}


@pytest.mark.parametrize("end", ["</s>", "<|endoftext|>"])
@pytest.mark.parametrize("kind", SPELLED)
def test_no_text_spells_the_end_token(tmp_path, kind, end):
    library = SPELLED[kind](end)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    texts = [end, f"a {end} b", f"a{end}b", f"{end}{end}", "a b"]
    assert tokenizer.end == library.token_to_id(end) and tokenizer.vocabulary == library.get_vocab_size()
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert len(ids) and tokenizer.end not in ids, text
    assert tokenizer.encode(["a b"])[0].tolist() == library.encode("a b").ids, "other text is encoded as ever"
    if "BPE" in kind:
        pieces = [tokenizer.decode([number]) for number in tokenizer.encode([f"a{end}b"])[0]]
        assert "".join(pieces) == f"a{end}b"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_no_text_spells_a_symbol_of_sentencepiece_that_ends_documents(tmp_path, kind):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_texts(300)),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=340,
        model_type=kind,
        byte_fallback=True,
        user_defined_symbols=["<sep>"],
        minloglevel=2,
    )
    tokenizer = load_tokenizer(str(tmp_path / "sp.model"), "<sep>")
    for ids in tokenizer.encode(["a<sep>b", "<sep>", "a </s> b"]):
        assert len(ids) and tokenizer.end not in ids
    with pytest.raises(UserError, match="<0x41> stands for other text, too"):
        load_tokenizer(str(tmp_path / "sp.model"), "<0x41>")


def test_a_piece_that_stands_for_text_ends_no_document(tmp_path):
    words(models.WordLevel, "</s>").save(str(tmp_path / "words.json"))
    with pytest.raises(UserError, match=r"words.json: \[UNK\] stands for what it doesn't know, too; name another"):
        load_tokenizer(str(tmp_path / "words.json"), "[UNK]")
    Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).save(str(tmp_path / "merged.json"))
    with pytest.raises(UserError, match="ab is made by a merge"):
        load_tokenizer(str(tmp_path / "merged.json"), "ab")


def test_a_model_without_its_unknown_piece_is_refused(tmp_path):
    """Tokenising would fail at the first word that it doesn't know."""
    Tokenizer(models.WordLevel({"The": 0, "<eos>": 1}, unk_token="<unk>")).save(str(tmp_path / "words.json"))
    with pytest.raises(UserError, match=r"words.json lacks its unknown piece <unk>"):
        load_tokenizer(str(tmp_path / "words.json"))


def test_what_cannot_be_encoded_is_one_line(tmp_path):
    Tokenizer(models.Unigram([("</s>", 0.0), ("a", -1.0)])).save(str(tmp_path / "uni.json"))
    with pytest.raises(UserError, match=r"uni.json can't encode a document: .*unk_id") as error:
        load_tokenizer(str(tmp_path / "uni.json")).encode(["ab"])
    assert "\n" not in str(error.value)


def test_what_has_no_piece_is_counted(tmp_path, sentencepiece_model):
    Tokenizer(models.BPE({"a": 0, "b": 1, "</s>": 2}, [])).save(str(tmp_path / "letters.json"))
    words(models.WordLevel, "</s>").save(str(tmp_path / "words.json"))
    cases = {
        "letters.json": (["abc", "a東b c"], 3),  # c, 東 and c are left out
        "words.json": (["a c b", "d"], 2),
        "sp.model": (["a東🙂"], 0),  # by bytes
    }
    for name, (texts, times) in cases.items():
        tokenizer = load_tokenizer(str(tmp_path / name))
        assert tokenizer.unknown(texts, tokenizer.encode(texts)) == times, name
    trained = byte_level_bpe("</s>", True)
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.save(str(tmp_path / "bytes.json"))
    tokenizer = load_tokenizer(str(tmp_path / "bytes.json"))
    assert tokenizer.unknown(TEXTS, tokenizer.encode(TEXTS)) == 0


def test_a_long_text_is_encoded_in_parts_with_the_same_ids(shared, monkeypatch):
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "gpt2-encoder.json"))
    texts = [
        (shared / "wikitext-2" / "test.txt").read_text()[:60_000],
        "it's  so\n\n\tlong\n" * 500,
        "",
        "short",
    ]
    whole = tokenizer.encode(texts)
    monkeypatch.setattr(encoding, "CHARACTERS_AT_ONCE", 1000)
    encoded, unknown = encoding.encode(tokenizer, texts)
    assert [ids.tolist() for ids in encoded] == [ids.tolist() for ids in whole] and unknown == 0
    for text in (*texts, "x" * 5000):
        parts = list(encoding.parts(text, 1000))
        assert "".join(parts) == text and max(map(len, parts)) <= 1000


def test_what_is_no_tokenizer_gives_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone").mkdir()
    small_gpt2(tmp_path / "alone")
    (tmp_path / "alone" / "vocab.bpe").unlink()
    (tmp_path / "none.json").write_text("{}")
    (tmp_path / "none.model").write_text("no model")
    (tmp_path / "ranks.model").write_text("IQ== 0\nIg== 1\n")
    (tmp_path / "deep.json").write_text('{"model": ' * 99_999)
    (tmp_path / "utf16.json").write_text("{}", "utf-16")
    (tmp_path / "none.txt").write_text("no tokenizer")
    endless = Tokenizer(models.BPE({"a": 0}, []))
    endless.save(str(tmp_path / "endless.json"))
    cases = {
        "missing.json": "is missing",
        "empty": "has none of tokenizer.json, encoder.json",
        "alone": "vocab.bpe should lie beside it",
        "none.json": "is no tokenizer",
        "none.model": "is no tokenizer",
        "ranks.model": "is a file of tiktoken: take the model's tokenizer.json instead",
        "deep.json": "is no tokenizer",
        "utf16.json": "is no tokenizer",
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
