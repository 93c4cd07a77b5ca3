"""TEV of checkpoints of ours and of safetensors files, against NumPy; no more is read than the embedding."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import main
from jaxstab.config import UserError
from jaxstab.diagnose import tev
from tests.stories import STORIES, load, needs_stories


def expected(rows_Vd):
    stds = np.sqrt(np.mean((rows_Vd - rows_Vd.mean(1, keepdims=True)) ** 2, 1))
    return stds, rows_Vd.mean(1)


def embedding(seed=0, tokens=5000, width=16):
    dice = np.random.default_rng(seed)
    return (dice.standard_normal((tokens, width)) * dice.uniform(0.5, 2, (tokens, 1)) + 0.3).astype(np.float32)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "wte.weight", "gpt_neox.embed_in.weight"])
def test_a_safetensors_file(tmp_path, name, capsys):
    rows = embedding()
    other = np.full((3, 4), np.nan, np.float32)  # read, it would be refused
    save_file({name: rows, "h.0.mlp.c_fc.weight": other}, tmp_path / "model.safetensors")
    (matrix,) = tev([str(tmp_path / "model.safetensors")])
    stds, means = expected(rows.astype(np.float64))
    np.testing.assert_allclose(matrix.stds, stds, rtol=1e-12)
    np.testing.assert_allclose(matrix.means, means, rtol=1e-9, atol=1e-15)
    assert f"{stds.mean():.4g}" in capsys.readouterr().out


def test_bfloat16_and_a_sharded_index(tmp_path):
    rows, head = embedding(1).astype(ml_dtypes.bfloat16), embedding(2).astype(ml_dtypes.bfloat16)
    save_file({"model.embed_tokens.weight": rows}, tmp_path / "a.safetensors")
    save_file({"lm_head.weight": head}, tmp_path / "b.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "a.safetensors", "lm_head.weight": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for given in (tmp_path, tmp_path / "model.safetensors.index.json"):
        matrices = tev([str(given)])
        assert len(matrices) == 2
        for each, matrix in zip(matrices, (rows, head), strict=True):
            np.testing.assert_allclose(each.stds, expected(matrix.astype(np.float64))[0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.float16, np.float64], ids=str)
def test_other_floats_are_read_as_what_they_are(tmp_path, dtype):
    rows = embedding(3, tokens=50).astype(dtype)
    save_file({"wte.weight": rows}, tmp_path / "model.safetensors")
    (matrix,) = tev([str(tmp_path / "model.safetensors")])
    np.testing.assert_allclose(matrix.stds, expected(rows.astype(np.float64))[0], rtol=1e-12)


def test_what_centring_removes(tmp_path, capsys):
    rows = embedding(4).astype(np.float64)
    save_file({"wte.weight": rows}, tmp_path / "model.safetensors")
    (matrix,) = tev([str(tmp_path / "model.safetensors")])
    np.testing.assert_allclose(matrix.mean_row, rows.mean(0), rtol=1e-9)
    printed = capsys.readouterr().out.splitlines()
    heads, cells = (re.split(r" {2,}", line) for line in printed[:2])
    values = dict(zip(heads, cells, strict=True))
    assert values["|mean row|"] == f"{np.sqrt((rows.mean(0) ** 2).sum()):.4g}"
    assert values["|row mean|"] == f"{np.abs(rows.mean(1)).mean():.4g}"


def test_shards_without_the_two_matrices_may_be_missing(tmp_path):
    save_file({"wte.weight": embedding(tokens=5)}, tmp_path / "a.safetensors")
    index = {"weight_map": {"wte.weight": "a.safetensors", "h.0.mlp.c_fc.weight": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(tev([str(tmp_path)])) == 1


@needs_stories
def test_a_file_of_llama2c():
    (matrix,) = tev([str(STORIES / "stories260K.bin")])
    rows = load()[2]["embed"].astype(np.float64)
    np.testing.assert_allclose(matrix.stds, expected(rows)[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("method", "tied"), [("identity", False), ("identity", True), ("wesar", True), ("sigma_reparam", False)]
)
def test_a_checkpoint_of_ours(saved_run, method, tied):
    """Against the effective weights of the whole state."""
    changes = {"reparam__method": method, "model__tie_embeddings": tied, "model__embedding__method": "scaled"}
    workdir, weights = saved_run(**changes)
    by_role = {each.matrix: each for each in tev([str(workdir)])}
    wanted = {"embed_tokens": weights["embed_tokens"]["embedding"], "lm_head": weights["lm_head"]["kernel"].T}
    for role, each in by_role.items():
        np.testing.assert_allclose(each.stds, expected(np.asarray(wanted[role], np.float64))[0], rtol=1e-5)
    assert by_role.keys() == wanted.keys()
    assert tev([str(workdir / "checkpoints" / "1")])[0].stds.tolist() == by_role["embed_tokens"].stds.tolist()


def test_it_is_drawn(tmp_path):
    save_file({"wte.weight": embedding(tokens=50)}, tmp_path / "model.safetensors")
    for name in ("tev.html", "tev.svg"):
        assert main.main(["main.py", "tev", str(tmp_path / "model.safetensors"), f"--out={tmp_path / name}"]) == 0
        assert "<svg" in (tmp_path / name).read_text()


def wrong_files(tmp_path):
    save_file({"bias": np.zeros(3, np.float32)}, tmp_path / "none.safetensors")
    save_file({"wte.weight": np.zeros(3, np.float32)}, tmp_path / "vector.safetensors")
    save_file({"wte.weight": np.full((3, 2), np.nan, np.float32)}, tmp_path / "nan.safetensors")
    save_file({"wte.weight": np.ones((3, 2), np.int8)}, tmp_path / "int8.safetensors")
    quantized = {"wte.weight": np.ones((3, 2), ml_dtypes.float8_e4m3fn), "wte.weight_scale": np.ones(1, np.float32)}
    save_file(quantized, tmp_path / "scaled.safetensors")
    content = (tmp_path / "int8.safetensors").read_bytes()
    (tmp_path / "odd.safetensors").write_bytes(content.replace(b'"I8"', b'"I7"'))
    (tmp_path / "shard").mkdir()
    save_file({"wte.weight": embedding(tokens=5)}, tmp_path / "shard" / "a.safetensors")
    index = {"weight_map": {"wte.weight": "a.safetensors", "lm_head.weight": "a.safetensors", "h": "b.safetensors"}}
    (tmp_path / "shard" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "half" / "state").mkdir(parents=True)


WRONG = {
    "none.safetensors": "no token embedding among its tensors: bias",
    "vector.safetensors": "of shape [3], not [tokens, width]",
    "int8.safetensors": "wte.weight of",
    "scaled.safetensors": "is quantized: it means something only times wte.weight_scale",
    "odd.safetensors": "wte.weight of",
    "shard": "lm_head.weight is missing in",
    "nan.safetensors": "not finite in 3 rows",
    "torn.safetensors": "is not a safetensors file",
    "index.json": "no weight_map",
    "empty": "neither a workdir nor a checkpoint",
    "begun": "has no checkpoint",
    "half": "the record of",
    "absent": "no file",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_one_line(tmp_path, name):
    wrong_files(tmp_path)
    with pytest.raises(UserError) as raised:
        tev([str(tmp_path / name)])
    assert WRONG[name] in str(raised.value) and name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("argv", [["tev"], ["tev", "x.safetensors", "--out=x.png"]])
def test_what_is_missing_or_wrong_on_the_command_line(argv, capsys):
    assert main.main(["main.py", *argv]) == 1
    assert capsys.readouterr().err.startswith("error: ")
