"""YuLan-Mini's checkpoints, random weights under their published names: gates kept, and merged as in its release."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxstab.config import UserError
from jaxstab.exchange import exporting, find, import_model
from tests.exchange.test_exporting import exported, no_transformers, source
from tests.exchange.test_importing import recipe
from tests.train.conftest import TinyRuns

LAYERS, WIDTH, MLP, KV, VOCABULARY = 3, 16, 24, 8, 257
CONFIG = {
    "model_type": "yulanmini",
    "architectures": ["YuLanMiniModelForCausalLM"],
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16,
    "attention_bias": True,
    "tie_word_embeddings": True,
    "scale_emb": 10,
    "scale_depth": 1.4,
    "dim_model_base_logits": WIDTH,
    "rms_type": "llama",
    "wesar_weights": True,
}
assert no_transformers  # a fixture that is used by its name
WIDTHS = {"q_proj": (WIDTH, WIDTH), "k_proj": (KV, WIDTH), "v_proj": (KV, WIDTH), "o_proj": (WIDTH, WIDTH)}
BRANCH = 1.4 / np.sqrt(LAYERS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return TinyRuns(tmp_path_factory.mktemp("corpus"))


def tensors():
    dice = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes |= {"model.norm_alpha": (), "lm_head_alpha": ()}
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        for name, shape in WIDTHS.items():
            shapes |= {f"{layer}self_attn.{name}.weight": shape, f"{layer}self_attn.{name}_alpha": (1,)}
            shapes |= {} if name == "o_proj" else {f"{layer}self_attn.{name}.bias": shape[:1]}
        shapes |= {f"{layer}mlp.{name}.weight": (MLP, WIDTH) for name in ("gate_proj", "up_proj")}
        shapes |= {f"{layer}mlp.down_proj.weight": (WIDTH, MLP)}
        shapes |= {f"{layer}{name}": () for name in ("gate_up_proj_alpha", "down_proj_alpha")}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{layer}{norm}.weight": (WIDTH,), f"{layer}{norm}_alpha": ()}
    sizes = {name: 1.0 if "norm" in name or "alpha" in name else 0.5 for name in shapes}
    return {name: np.asarray(sizes[name] * dice.uniform(0.2, 1.5, shapes[name]), np.float32) for name in shapes}


def write(folder, arrays, **changes):
    folder.mkdir()
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def merged(arrays):
    """The matrices of a plain model, by the formulas of its release; a gate multiplies biases too, as in training."""
    plain = {"lm_head.weight": arrays["model.embed_tokens.weight"] * arrays["lm_head_alpha"]}
    for name, array in arrays.items():
        if name.endswith("_alpha"):
            continue
        module = name.rpartition(".")[0]
        gate = module.replace("mlp.gate_proj", "gate_up_proj").replace("mlp.up_proj", "gate_up_proj") + "_alpha"
        plain[name] = array * arrays.get(gate.replace("mlp.down_proj", "down_proj"), np.float32(1))
        if module.endswith(("o_proj", "down_proj")):
            plain[name] = plain[name] * BRANCH
    plain["model.embed_tokens.weight"] = 10 * arrays["model.embed_tokens.weight"]
    return plain


def shared(runs):
    return recipe(runs, reparam__method="wesar", init__method="yulan_mini", reparam__wesar__gates="shared")


def test_gates_are_kept_and_merged_as_in_its_release(tmp_path, runs, capsys):
    arrays = tensors()
    write(tmp_path / "model", arrays)
    difference = import_model(tmp_path / "model", shared(runs), tmp_path / "run")
    assert difference < 2e-4 and "gates are kept" in capsys.readouterr().out
    stored = runs.arrays(tmp_path / "run", 0)
    gates = {
        "self_attn/q_proj/kernel": "self_attn.q_proj_alpha",
        "self_attn/o_proj/kernel": "self_attn.o_proj_alpha",
        "mlp/gate_proj/kernel": "gate_up_proj_alpha",
        "mlp/down_proj/kernel": "down_proj_alpha",
        "input_layernorm/scale": "input_layernorm_alpha",
    }
    for path, name in gates.items():
        expected = [arrays[f"model.layers.{n}.{name}"].reshape(()) for n in range(LAYERS)]
        np.testing.assert_array_equal(stored[f"raw/layers/{path}/gate"], expected)
    assert stored["raw/lm_head/kernel/gate"] == arrays["lm_head_alpha"]
    for ours, name in (("mlp/up_proj", "mlp.up_proj"), ("self_attn/o_proj", "self_attn.o_proj")):
        matrix = stored[f"raw/layers/{ours}/kernel/weight"][1].T
        np.testing.assert_allclose(matrix, arrays[f"model.layers.1.{name}.weight"], rtol=1e-5)
    np.testing.assert_allclose(stored["raw/embed_tokens/embedding"], arrays["model.embed_tokens.weight"], rtol=1e-6)

    exporting.export(tmp_path / "run", tmp_path / "plain")
    plain, expected = exported(tmp_path / "plain")[0], merged(arrays)
    assert plain.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(plain[name], array, rtol=1e-5, err_msg=name)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert (config["architectures"], config["tie_word_embeddings"]) == (["Qwen2ForCausalLM"], False)


def test_another_method_takes_what_is_merged(tmp_path, runs):
    arrays = tensors()
    write(tmp_path / "model", arrays)
    assert import_model(tmp_path / "model", recipe(runs, reparam__method="identity"), tmp_path / "run") < 2e-4
    weights = exporting.Source(*source(tmp_path / "run")).parts()
    expected = merged(arrays)["model.layers.2.mlp.gate_proj.weight"]
    np.testing.assert_allclose(weights["layers/mlp/gate_proj/kernel"][2].T, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("model.norm_alpha", np.ones(3, np.float32), "a gate is one number"),
        ("lm_head_alpha", np.zeros((), np.float32), "a number other than 0"),
        ("lm_head_beta", np.ones((), np.float32), "is no parameter of a YuLanMini"),
    ],
)
def test_what_is_no_gate_is_refused(tmp_path, name, value, says):
    write(tmp_path / "model", {**tensors(), name: value})
    with pytest.raises(UserError, match=says):
        find(tmp_path / "model")


def test_another_use_of_its_settings_is_refused(tmp_path):
    write(tmp_path / "model", tensors(), dim_model_base_logits=8)
    with pytest.raises(UserError, match="the two must agree"):
        find(tmp_path / "model")
