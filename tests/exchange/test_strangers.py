"""Files from strangers: one line, nothing executed, nothing written."""

import json
import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxstab.config import UserError
from jaxstab.data import DataConfig
from jaxstab.exchange import find, import_model
from jaxstab.train.config import Config
from tests.exchange import theirs

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"


RECIPE = Config(data=DataConfig(length=16))


class Bomb:
    def __reduce__(self):
        return (open, ("executed", "w"))


def config(**changes):
    return lambda folder: theirs.write(folder, config=changes)


def tensor(name, change, kind="llama"):
    """The model with one tensor changed; None takes it away."""

    def spoil(folder):
        tensors = theirs.write(folder, kind)
        changed = change(tensors.pop(name))
        save_file(tensors if changed is None else {**tensors, name: changed}, folder / MODEL)

    return spoil


def extra(name, array):
    def spoil(folder):
        save_file({**theirs.write(folder), name: array}, folder / MODEL)

    return spoil


def header(change):
    """The model with another header before the same bytes."""

    def spoil(folder):
        theirs.write(folder)
        content = (folder / MODEL).read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        changed = json.dumps(change(json.loads(content[8 : 8 + size]))).encode()
        (folder / MODEL).write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + size :])

    return spoil


def moved(entries, by):
    entries["lm_head.weight"]["data_offsets"] = [offset + by for offset in entries["lm_head.weight"]["data_offsets"]]
    return entries


def other(key, value):
    def change(entries):
        entries["lm_head.weight"][key] = value
        return entries

    return change


def index(change):
    """The model in three shards, with a changed index."""

    def spoil(folder):
        theirs.write(folder, shards=3)
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        changed = change(folder, weight_map)
        (folder / INDEX).write_text(json.dumps(changed if changed is not None else {"weight_map": weight_map}))

    return spoil


def elsewhere(name):
    def change(folder, weight_map):
        outside = folder.parent / "secret.safetensors"
        save_file({"lm_head.weight": np.zeros((257, 16), np.float32)}, outside)
        (folder / "inner").mkdir()
        save_file(load_file(outside), folder / "inner" / "secret.safetensors")
        weight_map["lm_head.weight"] = name.format(outside=outside)

    return change


def without_a_shard(folder, weight_map):
    (folder / weight_map["lm_head.weight"]).unlink()


def in_another_shard(folder, weight_map):
    weight_map["lm_head.weight"] = next(shard for shard in weight_map.values() if shard != weight_map["lm_head.weight"])


def pickled(folder):
    theirs.write(folder)
    (folder / MODEL).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def empty(folder):
    theirs.write(folder)
    (folder / MODEL).unlink()


def broken(name, content):
    def spoil(folder):
        theirs.write(folder)
        (folder / name).write_bytes(content)

    return spoil


HEAD = "lm_head.weight"
STRANGERS = {
    "a pickle": (pickled, "holds pickles (pytorch_model.bin)"),
    "no weights": (empty, "has neither model.safetensors nor"),
    "no header": (broken(MODEL, b"abc"), "is not a safetensors file"),
    "a header longer than its file": (broken(MODEL, struct.pack("<Q", 2**60) + b"{}"), "its header would have"),
    "a header that is no JSON": (broken(MODEL, struct.pack("<Q", 3) + b"{,}"), "is not a safetensors file"),
    "a nested header": (broken(MODEL, struct.pack("<Q", 10**5) + b"[" * 10**5), "is not a safetensors file"),
    "offsets beyond the file": (header(lambda entries: moved(entries, 10**6)), "is not a safetensors file"),
    "offsets that overlap": (header(lambda entries: moved(entries, -64)), "is not a safetensors file"),
    "a shape that doesn't fill its bytes": (header(other("shape", [257, 15])), "is not a safetensors file"),
    "a negative shape": (header(other("shape", [-257, -16])), "is not a safetensors file"),
    "an unknown dtype": (header(other("dtype", "F3_E1M1")), "is of dtype F3_E1M1"),
    "a dtype of integers": (tensor(HEAD, lambda array: array.astype(np.int8)), "is of dtype I8"),
    "another shape": (tensor(HEAD, lambda array: array[:-1]), "is of shape [256, 16], not [257, 16]"),
    "no head": (tensor(HEAD, lambda array: None), "the tensor lm_head.weight is missing"),
    "values that are not finite": (tensor(HEAD, lambda array: array * np.nan), "entries that are not finite"),
    "one tensor more": (extra("model.layers.0.adapter.weight", np.ones(3, np.float32)), "is no parameter of a Llama"),
    "a shard that is missing": (index(without_a_shard), "is missing, which model.safetensors.index.json names"),
    "a tensor that isn't in its shard": (index(in_another_shard), "lm_head.weight is missing in"),
    "a shard above": (index(elsewhere("../secret.safetensors")), "no safetensors file beside it"),
    "a shard in a folder": (index(elsewhere("inner/secret.safetensors")), "no safetensors file beside it"),
    "a shard by its whole path": (index(elsewhere("{outside}")), "no safetensors file beside it"),
    "a shard that is a pickle": (index(elsewhere("pytorch_model.bin")), "no safetensors file beside it"),
    "an index of numbers": (index(lambda folder, weight_map: {"weight_map": {HEAD: 3}}), "it has no weight_map"),
    "no config": (broken("config.json", b""), "can't be read as JSON"),
    "a config that is a list": (broken("config.json", b"[]"), "holds no JSON object"),
    "another model": (config(model_type="mamba"), "model_type='mamba'; known: llama"),
    "a model that is no word": (config(model_type=["llama"]), "model_type=['llama']"),
    "a width that is a word": (config(hidden_size="wide"), "takes an int, not 'wide'"),
    "a width below 0": (config(hidden_size=-16), "must be at least 1"),
    "heads that don't divide": (config(head_dim=None, num_attention_heads=3), "not divisible"),
    "scaled rotary embedding": (config(rope_scaling={"rope_type": "llama3", "factor": 8}), "rope_type='llama3'"),
    "rotary embedding of no kind": (config(rope_parameters=[1]), "rope_parameters=[1]"),
    "quantized weights": (config(quantization_config={"bits": 4}), "quantization_config"),
    "sliding windows": (config(layer_types=["sliding_attention"] * 2), "layer_types that aren't full_attention"),
    "biases of attention alone": (config(attention_bias=True), "the two must agree"),
    "another activation": (config(hidden_act="gelu"), "hidden_act='gelu'; known: silu"),
    "an activation that is no word": (config(hidden_act={}), "hidden_act={}"),
    "more layers than there are": (config(num_hidden_layers=3), "model.layers.2"),
    "more layers than memory would hold": (config(num_hidden_layers=10**9), "model.layers.2"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_it_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, stranger):
    monkeypatch.chdir(tmp_path)
    spoil, says = STRANGERS[stranger]
    spoil(tmp_path / "model")
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    with pytest.raises(UserError) as raised:
        import_model(tmp_path / "model", RECIPE, tmp_path / "run")
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before


def test_a_tied_head_that_differs(tmp_path):
    tensors = theirs.write(tmp_path / "model", "gpt2")
    save_file({**tensors, HEAD: np.ones((257, 16), np.float32)}, tmp_path / "model" / MODEL)
    with pytest.raises(UserError, match=r"differs from transformer\.wte\.weight"):
        import_model(tmp_path / "model", RECIPE, tmp_path / "run")


def test_links_as_the_hub_s_cache_has_them_are_followed(tmp_path):
    theirs.write(tmp_path / "blobs", shards=2)
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert find(tmp_path / "snapshot").model.layers == 2
