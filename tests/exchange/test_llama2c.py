"""llama2.c's files, written here as its export.py writes them, and stories260K with its documented greedy text."""

import json
import struct

import jax
import numpy as np
import pytest

from jaxstab.config import UserError
from jaxstab.data import load_tokenizer
from jaxstab.evaluate import generate, padded
from jaxstab.exchange import find, import_model
from jaxstab.exchange.llama2c import write_tokenizer_json
from jaxstab.model.transformer import Transformer
from jaxstab.train.config import Config
from jaxstab.train.trained import load
from tests.stories import STORIES, needs_stories

WIDTH, MLP, LAYERS, HEADS, KV, VOCABULARY, LENGTH = SIZES = (16, 24, 2, 4, 2, 11, 8)
STACKS = {
    "q": (WIDTH, WIDTH),
    "k": (WIDTH // 2, WIDTH),
    "v": (WIDTH // 2, WIDTH),
    "o": (WIDTH, WIDTH),
    "gate": (MLP, WIDTH),
    "down": (WIDTH, MLP),
    "up": (MLP, WIDTH),
}


def write(path, version=0, tied=True):
    """Writes a model of random weights; returns its arrays by name."""
    dice = np.random.default_rng(0)
    shapes = {"attention_norm": (LAYERS, WIDTH), "mlp_norm": (LAYERS, WIDTH), "norm": (WIDTH,)}
    shapes |= {name: (LAYERS, *shape) for name, shape in STACKS.items()}
    shapes |= {"embed": (VOCABULARY, WIDTH), "head": (VOCABULARY, WIDTH), "tables": (2, LENGTH, WIDTH // HEADS // 2)}
    arrays = {name: dice.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if version == 0:
        start = struct.pack("<7i", WIDTH, MLP, LAYERS, HEADS, KV, VOCABULARY if tied else -VOCABULARY, LENGTH)
        order = ["embed", "attention_norm", "q", "k", "v", "o", "mlp_norm", "gate", "down", "up", "norm", "tables"]
    else:
        start = struct.pack("<Ii7iB", 0x616B3432, version, *SIZES, int(tied)).ljust(256, b"\0")
        order = ["attention_norm", "mlp_norm", "norm", "embed", "q", "k", "v", "o", "gate", "down", "up"]
    order += [] if tied else ["head"]
    path.write_bytes(start + b"".join(arrays[name].tobytes() for name in order))
    return arrays


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_both_versions(tmp_path, version, tied):
    arrays = write(tmp_path / "model.bin", version, tied)
    weights = find(tmp_path / "model.bin").weights()
    np.testing.assert_array_equal(weights["layers"]["mlp"]["down_proj"]["kernel"], arrays["down"].swapaxes(1, 2))
    np.testing.assert_array_equal(weights["layers"]["post_attention_layernorm"]["scale"], arrays["mlp_norm"])
    np.testing.assert_array_equal(weights["lm_head"]["kernel"].T, arrays["embed" if tied else "head"])
    first = arrays["k"][1][:4]  # of a head of 4: neighbours are turned together there, halves here
    np.testing.assert_array_equal(weights["layers"]["self_attn"]["k_proj"]["kernel"][1].T[:4], first[[0, 2, 1, 3]])


WRONG = {
    "int8": (lambda path: write(path, 2), "version 2, which is quantized to int8"),
    "a byte short": (lambda path: (write(path), path.write_bytes(path.read_bytes()[:-1])), "its header tells of"),
    "sizes that lie": (lambda path: path.write_bytes(struct.pack("<7i", 2**30, 8, 2, 4, 2, 9, 8)), "header tells of"),
    "negative sizes": (lambda path: path.write_bytes(struct.pack("<7i", -16, 8, 2, 4, 2, 9, 8)), "has the sizes -16"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x02}q\x00." + bytes(64)), "is a pickle"),
    "a pickle in a zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(64)), "is a pickle"),
    "nothing": (lambda path: path.write_bytes(b""), "it has 0 bytes"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_other_files_are_refused(tmp_path, wrong):
    spoil, says = WRONG[wrong]
    spoil(tmp_path / "model.bin")
    with pytest.raises(UserError, match=says) as raised:
        import_model(tmp_path / "model.bin", Config(), tmp_path / "run")
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def test_a_tokenizer_merges_by_score_and_falls_back_to_bytes(tmp_path):
    pieces = [
        "<unk>",
        "\n<s>\n",
        "\n</s>\n",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        " a",
        "ab",
        " ab",
        "a",
        "b",
        " ",
    ]
    scores = [0.0] * 259 + [-2.0, -1.0, -3.0, -4.0, -5.0, -6.0]
    rows = [struct.pack("<fi", s, len(p.encode())) + p.encode() for p, s in zip(pieces, scores, strict=True)]
    (tmp_path / "tok.bin").write_bytes(struct.pack("<i", 9) + b"".join(rows))
    write_tokenizer_json(tmp_path / "tok.bin", tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"), "<s>")
    assert tokenizer.encode(["ab ba é"])[0].tolist() == [261, 264, 263, 262, 264, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([261, 264, 263, 262, 264, 3 + 0xC3, 3 + 0xA9]) == "ab ba é" and tokenizer.end == 1


@needs_stories
def test_the_documented_text_of_stories260k_token_for_token(tmp_path):
    golden = json.loads((STORIES / "stories260K.golden.json").read_text())
    difference = import_model(STORIES / "stories260K.bin", Config(), tmp_path / "run")
    trained = load(tmp_path / "run")
    assert difference == 0 and trained.tokenizer.end == golden["prompt_ids"][0]
    prompt, text = golden["prompt_ids"], golden["greedy_ids_float64"]
    model, count = Transformer(trained.config.model), len(text) - len(prompt)
    (tokens,) = generate(model, trained.weights, *padded([prompt]), jax.random.key(0), count)
    assert [*prompt, *tokens.tolist()] == text
    assert trained.tokenizer.decode(text).startswith("Once upon a time, there was a little girl named Lily.")
