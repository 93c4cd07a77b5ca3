"""A model from elsewhere becomes a run: its function stays what it was, and training goes on as any run's does."""

import functools
import json
import re
import shutil

import numpy as np
import pytest

import main
from jaxstab.compare import cells
from jaxstab.compare.grid import Cell
from jaxstab.config import UserError
from jaxstab.exchange import find, import_model
from jaxstab.train.config import Config, resolve
from tests.exchange import theirs
from tests.train import tiny
from tests.train.conftest import TinyRuns

WRAPPED = [
    ("llama", "identity"),
    ("llama", "wesar"),
    ("llama", "weight_norm"),
    ("llama", "sigma_reparam"),
    ("llama", "residual_scaling+weight_norm"),
    ("gpt2", "wesar"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return TinyRuns(tmp_path_factory.mktemp("corpus"))


def recipe(runs, **changes):
    values = tiny.get_config()
    values.data.files = (f"{runs.corpus}/*.jsonl",)
    values.data.cache_dir = f"{runs.corpus}/cache"
    for key, value in changes.items():
        *sections, name = key.split("__")
        functools.reduce(getattr, sections, values)[name] = value
    return resolve(values)


@pytest.mark.parametrize(("kind", "method"), WRAPPED)
def test_the_function_is_unchanged(tmp_path, runs, kind, method):
    theirs.write(tmp_path / "model", kind)
    difference = import_model(tmp_path / "model", recipe(runs, reparam__method=method), tmp_path / "run")
    assert difference < 2e-5
    assert json.loads((tmp_path / "run" / "imported.json").read_text())["largest_logit_difference"] == difference
    stored = runs.arrays(tmp_path / "run", 0)
    assert all(np.isfinite(array).all() for array in stored.values())
    if "wesar" in method:
        weight = stored["raw/layers/mlp/up_proj/kernel/weight"]
        np.testing.assert_allclose(np.sqrt(np.mean(weight**2, (1, 2))), np.sqrt(4e-5), rtol=1e-4)


@pytest.mark.parametrize("method", ["rezero", "mlra"])
def test_a_method_that_begins_elsewhere_is_refused(tmp_path, runs, method):
    theirs.write(tmp_path / "model")
    with pytest.raises(UserError, match="does not keep the weights"):
        import_model(tmp_path / "model", recipe(runs, reparam__method=method), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bfloat16_and_names_without_their_prefix(tmp_path):
    import ml_dtypes
    from safetensors.numpy import save_file

    family, _, tensors = theirs.tensors_of("gpt2", dtype=ml_dtypes.bfloat16)
    theirs.write(tmp_path / "model", "gpt2", dtype=ml_dtypes.bfloat16)
    bare = {name.removeprefix(family.prefix): array for name, array in tensors.items()}
    save_file(bare | {"h.0.attn.bias": np.ones((1, 1, 16, 16), bool)}, tmp_path / "model" / "model.safetensors")
    weights = find(tmp_path / "model").weights()
    wide = {name: array.astype(np.float32) for name, array in tensors.items()}
    query, key, value = np.split(wide["transformer.h.1.attn.c_attn.weight"], 3, axis=1)
    attention = weights["layers"]["self_attn"]
    for name, expected in (("q_proj", query), ("k_proj", key), ("v_proj", value)):
        np.testing.assert_array_equal(attention[name]["kernel"][1], expected)
    np.testing.assert_array_equal(weights["lm_head"]["kernel"], wide["transformer.wte.weight"].T)


@pytest.mark.slow
def test_a_run_goes_on_from_it_without_a_config_and_resumes_bitwise(tmp_path, runs, capsys):
    """In two commands; what is trained is the imported model, and a run that lost its end takes it again."""
    tensors = theirs.write(tmp_path / "model", shards=3)
    for name in ("run", "whole"):
        command = [
            *runs.command(tmp_path / name, f"--from={tmp_path / 'model'}", "--config.optimizer.learning_rate=0.01")
        ]
        assert main.main([command[0], "import", *command[1:]]) == 0
    assert "differ by" in capsys.readouterr().out
    assert main.main(["main.py", f"--workdir={tmp_path / 'whole'}"]) == 0
    gate = runs.arrays(tmp_path / "whole", 0)
    embedding = gate["raw/embed_tokens/embedding/weight"] * gate["raw/embed_tokens/embedding/gate"]
    np.testing.assert_allclose(embedding, tensors["model.embed_tokens.weight"], rtol=1e-6, atol=1e-7)
    identity = json.loads((tmp_path / "whole" / "config.json").read_text())["identity"]
    assert identity["data_digest"] and identity["tokenizer_digest"]
    go_on = ["main.py", f"--workdir={tmp_path / 'run'}", "--config.log.console_seconds=3"]
    assert main.main(go_on) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    assert main.main(go_on) == 0
    runs.assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_the_checkpoint_of_step_0_stays(tmp_path, runs):
    theirs.write(tmp_path / "model")
    import_model(tmp_path / "model", recipe(runs, checkpoint__keep_last=1), tmp_path / "run")
    assert main.main(["main.py", "train", f"--workdir={tmp_path / 'run'}"]) == 0
    assert runs.checkpoints(tmp_path / "run") == {"0", "8"}


def test_what_the_recipe_says_of_the_model_is_left_unless_the_command_line_says_it(tmp_path, runs, capsys):
    theirs.write(tmp_path / "model")
    command = runs.command(tmp_path / "run", f"--from={tmp_path / 'model'}", "--config.model.layers=3")
    assert main.main([command[0], "import", *command[1:]]) == 1
    assert "--config.model.layers=3 is not what" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_workdir_with_a_run_is_left_alone(tmp_path, runs):
    theirs.write(tmp_path / "model")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run already"):
        import_model(tmp_path / "model", recipe(runs), tmp_path / "run")


def test_a_tokenizer_comes_along(tmp_path, runs):
    from tokenizers import Tokenizer, models

    theirs.write(tmp_path / "model", vocabulary=300)
    vocabulary = {chr(33 + i): i for i in range(90)} | {"<end>": 90}
    Tokenizer(models.BPE(vocabulary, [])).save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    import_model(tmp_path / "model", recipe(runs), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert saved["data.tokenizer"] == str(tmp_path / "run" / "tokenizer") and saved["data.end_token"] == "<end>"
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").is_file()


def test_every_key_of_the_model_is_compared(tmp_path):
    """No model is taken for one of a family that it isn't: each key is the family's, or free."""
    for family in theirs.FAMILIES.values():
        _, model, _ = theirs.tensors_of(family.model_type)
        assert not family.differences(model)


def test_a_comparison_begins_with_the_same_model_under_every_method(tmp_path, runs, capsys):
    theirs.write(tmp_path / "model")

    def compare(methods, *more, source="model"):
        program, *rest = runs.command(tmp_path / "grid", f"--from={tmp_path / source}", f"--methods={methods}")
        keys = ["--config.reparam.method=identity", "--learning_rates=1e-3", "--seeds=1"]
        return main.main([program, "compare", *rest, *keys, *more])

    assert compare("config,wesar") == 0
    rows = [json.loads(line) for line in (tmp_path / "grid" / "results.jsonl").read_text().splitlines()]
    plain, wesar = (row["initial_loss"] for row in rows)
    np.testing.assert_allclose(plain, wesar, rtol=1e-5)
    assert json.loads((tmp_path / "grid/cells/wesar-0.001-seed1/imported.json").read_text())["source"].endswith("model")

    shutil.rmtree(tmp_path / "grid/cells/wesar-0.001-seed1")
    assert compare("config,wesar") == 0
    again = [json.loads(line) for line in (tmp_path / "grid" / "results.jsonl").read_text().splitlines()]
    assert [row["validation_loss"] for row in again] == [row["validation_loss"] for row in rows]

    assert compare("config,mlra") == 1 and "mlra can't begin with" in capsys.readouterr().err
    assert not list(tmp_path.glob("grid/cells/mlra*"))  # nothing is begun
    assert compare("embed_norm") == 1 and "embed_norm can't begin with" in capsys.readouterr().err
    assert (
        compare("config", "--vary=init.method=he,small") == 1 and "of how weights are drawn" in capsys.readouterr().err
    )
    assert compare("config,qk_norm") == 1 and "qk_norm can't begin with" in capsys.readouterr().err
    assert compare("small,he") == 1 and "small and he in --methods differ in how weights" in capsys.readouterr().err
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    assert compare("config", source="other") == 1
    assert re.search("from .there '.*model', here '.*other'.", capsys.readouterr().err)


def test_a_directory_that_two_processes_begin_at_once_is_whole(tmp_path):
    directory = tmp_path / "cells" / "config-0.001-seed1"

    def begin(_, into):
        directory.mkdir(parents=True)  # by the other process, which was faster
        (directory / "config.json").write_text("theirs")
        into.mkdir()
        (into / "config.json").write_text("ours")

    cells._begin(begin, Cell("config", 1e-3, 1, (), Config()), directory)
    assert (directory / "config.json").read_text() == "theirs" and list(tmp_path.iterdir()) == [tmp_path / "cells"]
