"""Whole trainings of 20 steps against PyTorch, from the same weights and batches, in float64 on both sides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.model import transformer
from jaxstab.model.attention import reference_attention as reference
from jaxstab.optimize import Hypers
from jaxstab.train.config import default_config, resolve
from jaxstab.train.packed import unpack
from jaxstab.train.program import build

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
nn = torch.nn

WIDTH, LAYERS, HEADS, VOCABULARY, LENGTH, BATCH, STEPS = 16, 3, 2, 29, 12, 4, 20
# A warmup of 4 steps has rates that are exact in float32, which a schedule is computed in.
RATE, DECAY, WARMUP, Z_LOSS = 3e-3, 0.1, 4, 1e-4
STARTS = np.random.default_rng(0).integers(0, VOCABULARY, (STEPS, BATCH, 1))
BATCHES = (STARTS + np.arange(LENGTH + 1)) % VOCABULARY
RUNS = {
    "small": ("identity", "small", {}),
    "wesar": ("wesar", "he", {"sigma": 0.02}),
    "sigma_reparam": ("sigma_reparam", "he", {"iterations": 3}),
}


def our_training(name):
    """(initial raw parameters, reparameterization state, constant of the embedding, losses, last raw parameters)."""
    method, scale, options = RUNS[name]
    values = default_config()
    values.model.update({"width": WIDTH, "layers": LAYERS, "heads": HEADS, "vocabulary": VOCABULARY})
    values.model.max_length = values.data.length = LENGTH
    values.model.embedding.method = "unit"
    values.reparam.method, values.init.method = method, scale
    for key, value in options.items():
        values.reparam[method][key] = value
    values.optimizer.schedule.method = "constant"
    values.optimizer.warmup = WARMUP
    values.train.update({"steps": STEPS, "batch_size": BATCH, "loss_chunk": 5, "z_loss": Z_LOSS})
    config = resolve(values)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float64"))
    with jax.enable_x64(True):
        program = build(config)
        state = jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, program.init(0)
        )
        raw, vectors = jax.tree.map(np.array, (state.raw, state.reparam[0]))
        losses = []
        for tokens in BATCHES:
            hypers = Hypers(jnp.float64(RATE), jnp.float64(DECAY))
            state, metrics = program.step(state, jnp.asarray(tokens, jnp.int32), hypers)
            losses.append(unpack(metrics)[0]["train/loss"])
        constant = 1.0 if method == "wesar" else program.setup.table["embed_tokens"]["embedding"].multiplier
        return raw, vectors, constant, losses, jax.tree.map(np.array, state.raw)


class Matrix(nn.Module):
    """An nn.Linear or nn.Embedding as the method stores it; `take` copies our parameters in."""

    def __init__(self, method, inner):
        super().__init__()
        self.inner, self.method = inner, method
        self.gate = None if method == "identity" else nn.Parameter(torch.ones(()))
        if method == "sigma_reparam":
            dim = 1 if isinstance(inner, nn.Embedding) else 0
            nn.utils.parametrizations.spectral_norm(inner, eps=1e-12, dim=dim)

    @property
    def stored(self):
        return self.inner.parametrizations.weight.original if self.method == "sigma_reparam" else self.inner.weight

    def forward(self, x):
        return self.inner(x) if self.gate is None else self.gate * self.inner(x)

    def oriented(self, array):
        return array if isinstance(self.inner, nn.Embedding) else array.T

    @torch.no_grad()
    def take(self, raw, vector):
        weight = raw if self.gate is None else raw["weight"]
        self.stored.copy_(torch.tensor(self.oriented(weight)))
        if self.gate is not None:
            self.gate.copy_(torch.tensor(raw["gate"]))
        if self.method == "sigma_reparam":
            self.inner.parametrizations.weight[0]._v.copy_(torch.tensor(vector))

    def check(self, raw):
        weight = raw if self.gate is None else raw["weight"]
        np.testing.assert_allclose(self.oriented(self.stored.detach().numpy()), weight, rtol=1e-9, atol=1e-12)
        if self.gate is not None:
            np.testing.assert_allclose(self.gate.item(), raw["gate"], rtol=1e-10)


class Block(nn.Module):
    def __init__(self, method):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, Matrix(method, nn.Linear(WIDTH, WIDTH, bias=False)))
        self.up_proj = Matrix(method, nn.Linear(WIDTH, 4 * WIDTH, bias=False))
        self.down_proj = Matrix(method, nn.Linear(4 * WIDTH, WIDTH, bias=False))
        self.input_layernorm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.post_attention_layernorm = nn.RMSNorm(WIDTH, eps=1e-5)

    def forward(self, x):
        normed = self.input_layernorm(x)
        q, k, v = (
            getattr(self, name)(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = nn.functional.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return x + self.down_proj(nn.functional.gelu(self.up_proj(self.post_attention_layernorm(x))))


def rotated(x):
    """Rotary embedding in complex numbers: feature i turns with feature i + half."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** -(torch.arange(half) / half)
    turn = torch.polar(torch.ones(()), torch.arange(x.shape[-2])[:, None] * frequencies)
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1)


class Model(nn.Module):
    def __init__(self, method, constant):
        super().__init__()
        self.constant = constant
        self.embed_tokens = Matrix(method, nn.Embedding(VOCABULARY, WIDTH))
        self.layers = nn.ModuleList(Block(method) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.lm_head = Matrix(method, nn.Linear(WIDTH, VOCABULARY, bias=False))

    def forward(self, tokens):
        x = self.constant * self.embed_tokens(tokens)
        for block in self.layers:
            x = block(x)
        return self.lm_head(self.norm(x))

    def matrices(self, tree):
        """(module, its part of a tree of ours) for every matrix."""
        yield self.embed_tokens, tree["embed_tokens"]["embedding"]
        yield self.lm_head, tree["lm_head"]["kernel"]
        for number, block in enumerate(self.layers):
            for group, names in (
                ("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
                ("mlp", ("up_proj", "down_proj")),
            ):
                for name in names:
                    part = tree["layers"][group][name]["kernel"]
                    yield getattr(block, name), jax.tree.map(lambda x, i=number: x[i], part)


def torch_training(method, raw, vectors, constant):
    """Losses of a training in PyTorch, and the model at its end."""
    model = Model(method, constant)
    for (matrix, part), (_, vector) in zip(model.matrices(raw), model.matrices(vectors), strict=True):
        matrix.take(part, vector)
    decayed = [matrix.stored for matrix, _ in model.matrices(raw)]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in decayed)]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step, tokens in enumerate(torch.tensor(BATCHES)):
        logits = model(tokens[:, :-1])
        log_z = torch.logsumexp(logits, -1)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + Z_LOSS * torch.mean(log_z**2)).backward()
        norm = torch.sqrt(sum(torch.sum(p.grad**2) for p in model.parameters()))
        for parameter in model.parameters():
            parameter.grad /= torch.clamp(norm, min=1.0)  # clip_grad_norm_ adds 1e-6 to the norm
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP)
        optimizer.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("name", RUNS)
def test_twenty_steps_are_pytorchs(name, monkeypatch):
    # jax.nn's attention takes its softmax in float32 whatever it is given.
    monkeypatch.setattr(transformer, "fused_attention", lambda q, k, v, segments, *_: reference(q, k, v, segments)[0])
    raw, vectors, constant, losses, last = our_training(name)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        expected, model = torch_training(RUNS[name][0], raw, vectors, constant)
    finally:
        torch.set_default_dtype(default)
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    assert losses[-1] < losses[0] - 0.2
    for matrix, part in model.matrices(last):
        matrix.check(part)
    np.testing.assert_allclose(model.norm.weight.detach(), last["norm"]["scale"], rtol=1e-10)
