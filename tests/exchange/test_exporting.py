"""A checkpoint as a folder for `transformers`: the tensors that were imported, bit for bit, and what lies beside."""

import importlib.util
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import main
from jaxstab.config import UserError
from jaxstab.exchange import exporting, find, import_model
from jaxstab.exchange.exporting import home
from jaxstab.model.config import ModelConfig
from jaxstab.model.placements import PlacementConfig
from tests.exchange import theirs
from tests.exchange.test_importing import recipe
from tests.train.conftest import TinyRuns


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return TinyRuns(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def no_transformers(monkeypatch):
    """Without it nothing is read back; tests/parity does."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "torch" else real(name, *more))


def exported(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: array for file in files for name, array in load_file(file).items()}, [file.name for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_the_same_tensors_come_back(tmp_path, runs, kind, monkeypatch):
    monkeypatch.setattr(exporting, "SHARD", 12_000)
    tensors = theirs.write(tmp_path / "model", kind)
    import_model(tmp_path / "model", recipe(runs), tmp_path / "gated")
    import_model(tmp_path / "model", recipe(runs, reparam__method="identity"), tmp_path / "run")
    assert main.main(["main.py", "export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]) == 0
    arrays, files = exported(tmp_path / "out")
    assert arrays.keys() == tensors.keys() and len(files) > 2
    for name, array in tensors.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    assert find(tmp_path / "out").model == find(tmp_path / "model").model
    exporting.export(tmp_path / "gated", tmp_path / "merged")
    for name, array in exported(tmp_path / "merged")[0].items():
        if name in tensors:  # a head whose gate is another than the embedding's is no longer tied
            np.testing.assert_allclose(array, tensors[name], rtol=1e-6, atol=1e-7, err_msg=name)


def test_no_more_than_a_stack_is_read_at_once(tmp_path, runs, monkeypatch):
    theirs.write(tmp_path / "model")
    import_model(tmp_path / "model", recipe(runs), tmp_path / "run")
    sizes, real = [], exporting.read_weights

    def read(*arguments):
        weights = real(*arguments)
        sizes.append(sum(leaf.size for leaf in exporting.leaves_by_path(weights).values()))
        return weights

    monkeypatch.setattr(exporting, "read_weights", read)
    exporting.export(tmp_path / "run", tmp_path / "out")
    arrays, _ = exported(tmp_path / "out")
    assert len(sizes) > 5 and max(sizes) == 2 * arrays["lm_head.weight"].size


@pytest.mark.slow
def test_a_trained_run_and_its_card(tmp_path, runs, capsys):
    assert runs.run(tmp_path / "run", "--config.model.mlp=relu", "--config.model.embedding.method=scaled") == 0
    capsys.readouterr()
    assert main.main(["main.py", "export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'mine'}"]) == 0
    said = capsys.readouterr().out
    assert "ArceeForCausalLM" in said and "pip install -e .[transformers]" in said
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert (config["hidden_act"], config["eos_token_id"], config["tie_word_embeddings"]) == ("relu", 256, False)
    card = (tmp_path / "mine" / "README.md").read_text()
    losses = [line for line in runs.lines(tmp_path / "run") if "train/loss" in line]
    assert f"| train/loss | {losses[-1]['train/loss']:.6g} | 8 |" in card
    for word in ("# mine", "reparam.method=wesar", "eval/validation/loss", "model.width=16", "*.jsonl"):
        assert word in card
    weights = find(tmp_path / "mine").weights()
    wanted = exporting.Source(*source(tmp_path / "run")).parts()
    np.testing.assert_array_equal(weights["embed_tokens"]["embedding"], wanted["embed_tokens/embedding"])
    assert main.main(["main.py", "export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'mine'}"]) == 1
    assert "there already" in capsys.readouterr().err


def source(workdir):
    path = exporting.checkpoint_of(workdir)
    record = exporting.read_record(path)
    return path, record, exporting.config_of(path, record)


def test_the_tokenizer_of_bytes_has_the_same_ids(tmp_path, runs):
    from tokenizers import Tokenizer

    theirs.write(tmp_path / "model")
    import_model(tmp_path / "model", recipe(runs), tmp_path / "run")
    exporting.export(tmp_path / "run", tmp_path / "out")
    fast = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    text = "A tab\t, a newline\n, naïve, 日本 and \x00."
    assert fast.encode(text).ids == list(text.encode()) and fast.decode(list(text.encode())) == text
    assert fast.encode("a<|endoftext|>").ids == [97, 256]


HOMES = [
    ({"mlp": "gelu"}, "arcee"),
    ({"mlp": "relu", "bias": True, "kv_heads": 2}, "arcee"),
    ({"mlp": "swiglu"}, "llama"),
    ({"mlp": "swiglu", "qk_norm": True, "head_size": 32}, "qwen3"),
    (
        {"mlp": "swiglu", "qk_norm": True, "qk_norm_joint": True, "norm_placement": PlacementConfig("reordered")},
        "olmo2",
    ),
    ({"mlp": "swiglu", "norm_placement": PlacementConfig("peri"), "attention_softcap": 50.0}, "gemma2"),
    ({"mlp": "gelu_tanh", "norm": "layernorm", "positions": "learned", "bias": True, "rope_theta": 5.0}, "gpt2"),
    ({"norm": "layernorm", "positions": "learned", "bias": True, "position_offset": 2}, "opt"),
    ({"norm": "layernorm", "bias": True, "parallel": True, "rotary_fraction": 0.5}, "gpt_neox"),
]


@pytest.mark.parametrize(("changes", "kind"), HOMES, ids=lambda part: str(part)[:40])
def test_the_class_that_computes_a_model(changes, kind):
    assert home(ModelConfig(**changes)).model_type == kind


NO_HOME = [
    ({"norm_placement": PlacementConfig("post")}, "ArceeForCausalLM", "model.norm_placement.method=post (not pre)"),
    ({"qk_norm": True}, "Qwen3ForCausalLM", "model.mlp=gelu (not swiglu)"),
    ({"mlp": "swiglu", "logits_softcap": 30.0}, "LlamaForCausalLM", "model.logits_softcap=30.0 (not 0.0)"),
]


@pytest.mark.parametrize(("changes", "nearest", "says"), NO_HOME, ids=lambda part: str(part)[:40])
def test_what_has_no_home_is_refused_with_the_nearest(changes, nearest, says):
    with pytest.raises(UserError) as raised:
        home(ModelConfig(**changes))
    assert nearest in str(raised.value) and says in str(raised.value)
