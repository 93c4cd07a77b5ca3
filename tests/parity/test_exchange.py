"""Models of `transformers` with random weights, imported: their logits and gradients."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxstab.data import DataConfig
from jaxstab.exchange import export, find, import_model
from jaxstab.exchange.weights import theirs
from jaxstab.model.transformer import Transformer
from jaxstab.train.config import Config

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

COMMON = {"vocab_size": 263, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 40}
GPT2 = {"vocab_size": 263, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40}
MODELS = {
    "llama": ("Llama", LLAMA),
    "llama, tied, biases, wide heads": (
        "Llama",
        {**LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 12},
    ),
    "llama, another base": ("Llama", {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied, another width": ("GPT2", {**GPT2, "tie_word_embeddings": False, "n_inner": 40}),
    "opt": (
        "OPT",
        {**COMMON, "ffn_dim": 48, "max_position_embeddings": 40, "word_embed_proj_dim": 32, "pad_token_id": None},
    ),
    "pythia": ("GPTNeoX", {**COMMON, "intermediate_size": 48, "max_position_embeddings": 40}),
    "pythia, one after the other": (
        "GPTNeoX",
        {**COMMON, "intermediate_size": 48, "max_position_embeddings": 40, "use_parallel_residual": False},
    ),
    "arcee": ("Arcee", LLAMA),
    "arcee, gelu": ("Arcee", {**LLAMA, "hidden_act": "gelu"}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 12}),
    "gemma2": (
        "Gemma2",
        {
            **LLAMA,
            "hidden_activation": "silu",
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention"] * 3,
            "pad_token_id": None,
            "attn_implementation": "eager",
        },
    ),
    "olmo2": ("Olmo2", {**LLAMA, "pad_token_id": None}),
}
HEADS = {"GPT2": "GPT2LMHeadModel"}
TOKENS = np.random.default_rng(0).integers(0, 263, (2, 20))


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """(their model, the folder that it is saved in, in several shards)."""
    name, options = MODELS[request.param]
    config = getattr(transformers, f"{name}Config")(**options)
    torch.manual_seed(0)
    model = getattr(transformers, HEADS.get(name, f"{name}ForCausalLM"))(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, which begin as ones and zeros
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder, max_shard_size="20KB")
    assert json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return model, folder


def test_logits_and_gradients(saved):
    model, folder = saved
    found = find(folder)
    weights = jax.tree.map(jnp.asarray, found.weights())
    logits = jax.jit(Transformer(found.model).apply)({"params": weights}, jnp.asarray(TOKENS))
    tokens = torch.tensor(TOKENS)
    output = model(tokens, labels=tokens)
    assert np.max(np.abs(logits - output.logits.detach().numpy())) <= 2e-5

    def loss(weights):
        log_p = jax.nn.log_softmax(Transformer(found.model).apply({"params": weights}, jnp.asarray(TOKENS)))
        return -jnp.mean(jnp.take_along_axis(log_p[:, :-1], jnp.asarray(TOKENS)[:, 1:, None], -1))

    gradients = jax.tree.map(np.array, jax.jit(jax.grad(loss))(weights))
    gradients["embed_tokens"]["embedding"] *= found.family.embedding_constant(found.model.width)
    if found.model.tie_embeddings:
        gradients["embed_tokens"]["embedding"] = (
            gradients["embed_tokens"]["embedding"] + gradients["lm_head"]["kernel"].T
        )
    output.loss.backward()
    given = dict(model.named_parameters())
    given |= {"embed_out.weight": given.get("lm_head.weight")}  # Pythia's head has another name in files
    family = dataclasses.replace(found.family, norm_offset=0.0)  # a gradient has none
    for piece in found.places:
        stacks = [leaf(gradients, row.path) for row in piece.rows]
        arrays = [stack if piece.layer is None else stack[piece.layer] for stack in stacks]
        expected = given[piece.name].grad.numpy()
        np.testing.assert_allclose(theirs(family, found.model.heads, piece, arrays), expected, atol=1e-6, rtol=2e-4)


def test_and_back(saved, tmp_path):
    """Imported and exported, every tensor is bit for bit the same, and transformers reads what it read before."""
    model, folder = saved
    import_model(folder, Config(data=DataConfig(length=16)), tmp_path / "run")
    assert export(tmp_path / "run", tmp_path / "out") <= 2e-5
    again = type(model).from_pretrained(tmp_path / "out").state_dict()
    before = type(model).from_pretrained(folder).state_dict()
    assert again.keys() == before.keys()
    for name, tensor in before.items():
        if type(model).__name__ == "Gemma2ForCausalLM":  # gains less 1, and an embedding with a constant, are rounded
            torch.testing.assert_close(again[name], tensor, rtol=2e-7, atol=1.2e-7)
        else:
            assert torch.equal(again[name], tensor), name
    files = [[load_file(file) for file in each.glob("*.safetensors")] for each in (folder, tmp_path / "out")]
    assert set().union(*files[0]) == set().union(*files[1])


def leaf(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree
