"""How fast a step is, as ratios: python benchmarks/speed.py [frameworks|methods|growth|compile] [--toy] > speed.jsonl

- frameworks: against Hugging Face's Arcee in PyTorch, eager and compiled, where they are installed, and against
  nanodo's model in a plain step, given `--nanodo=` a checkout of it.
- methods: each reparameterization over `identity`, at the proxy's size and at the paper's 130M shape.
- growth: time and memory with depth, width, length, vocabulary and batch doubled in turn, beside the FLOPs.
- compile: seconds of tracing and compiling at three depths.

Without a name all of them, in about ten minutes on two cores. Prints one JSON object per line, each figure beside its
goal. Nothing else should run meanwhile. docs/results/speed.md has the figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import optax
from timing import SHAPE, Step, compiled, configured, doubled, interleaved, random_tokens, ratios, step_of, warmed

from jaxstab.model.flops import flops_per_token
from jaxstab.model.transformer import read_table
from jaxstab.train.config import Config
from jaxstab.train.program import build

TOY = dict(width=16, layers=2, heads=2, vocabulary=64, batch=2, length=16)
PROXY = dict(width=192, layers=16, heads=3, vocabulary=8192, batch=8, length=256)
# A method works once per step, however many tokens there are in it; the papers' steps have half a million and more.
METHOD_SHAPES = {
    "proxy, 2,048 tokens": PROXY,
    "proxy, 16,384 tokens": {**PROXY, "batch": 64, "accumulation": 8},
    "130M, 2,048 tokens": dict(width=768, layers=12, heads=12, vocabulary=32000, batch=1, length=2048),
}
METHOD_ROUNDS = {"proxy, 2,048 tokens": 8, "proxy, 16,384 tokens": 3, "130M, 2,048 tokens": 2}
METHOD_GOALS = {"wesar": 1.005, "residual_scaling": 1.002, "sigma_reparam": 1.02, "weight_norm": 1.02}
Rows = Iterator[dict[str, Any]]


def arcee(shape: dict[str, int], compiled: bool) -> Step:
    """A step of Hugging Face's Arcee, the architecture that jaxstab's default exports to: AdamW, clipping at 1."""
    import torch
    from transformers import ArceeConfig, ArceeForCausalLM

    torch.manual_seed(0)
    model = ArceeForCausalLM(
        ArceeConfig(
            vocab_size=shape["vocabulary"],
            hidden_size=shape["width"],
            intermediate_size=4 * shape["width"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["heads"],
            max_position_embeddings=shape["length"],
            hidden_act="gelu",
            bos_token_id=0,
            eos_token_id=1,
            use_cache=False,
        )
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    forward = torch.compile(model) if compiled else model
    tokens = torch.from_numpy(random_tokens(shape["vocabulary"], shape["batch"], shape["length"])).long()
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].reshape(-1)

    def step() -> None:
        logits = forward(input_ids=inputs).logits
        torch.nn.functional.cross_entropy(logits.reshape(-1, shape["vocabulary"]), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return warmed(step)


def nanodo(shape: dict[str, int], checkout: str) -> Step:
    """A plain jitted step of nanodo's model: cross-entropy of whole logits, AdamW, clipping at 1."""
    sys.path.insert(0, checkout)
    from nanodo.model import DoConfig, TransformerDo

    width, length = shape["width"], shape["length"]
    model = TransformerDo(
        DoConfig(width, shape["heads"], length, shape["layers"], shape["vocabulary"], 4 * width, fsdp_enabled=False)
    )
    tokens = jnp.asarray(random_tokens(shape["vocabulary"], shape["batch"], length))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, 0.9, 0.95, weight_decay=0.1))
    parameters = model.init(jax.random.key(0), tokens[:, :-1])

    def loss(parameters: Any) -> jax.Array:
        logits = model.apply(parameters, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def update(state: Any) -> Any:
        parameters, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(parameters), moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    jitted, state = jax.jit(update, donate_argnums=0), (parameters, optimizer.init(parameters))

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(jitted(state))

    return warmed(step)


def frameworks(options: argparse.Namespace) -> Rows:
    shape = TOY if options.toy else SHAPE
    like_nanodo = dict(norm="layernorm", positions="learned", mlp="gelu_tanh", tie_embeddings=True)
    references: dict[str, tuple[dict[str, Any], float, Any]] = {}
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        references["PyTorch, eager"] = {}, 1.0, lambda: arcee(shape, False)
        references["PyTorch, torch.compile"] = {}, 1.0, lambda: arcee(shape, True)
    if options.nanodo:
        references["nanodo"] = like_nanodo, 1.5, lambda: nanodo(shape, options.nanodo)
    if not references:
        yield {"benchmark": "frameworks", "skipped": "neither PyTorch with transformers nor --nanodo is here"}
    for name, (changes, goal, reference) in references.items():
        steps = {
            name: reference(),
            "jaxstab": step_of(configured(**shape, **changes)),
            "jaxstab, control": step_of(configured(**shape, **changes)),
            "jaxstab, wesar": step_of(configured(**shape, **changes, method="wesar")),
        }
        seconds = interleaved(steps, 2 if options.toy else 6 * options.more)
        for own, summary in ratios(seconds, name).items():
            row = {"benchmark": "frameworks", "reference": name, "step": own, **summary}
            row["tokens per second, over the reference"] = round(1 / summary["ratio"], 3)
            yield row | ({"goal": f">= {goal}", "met": 1 / summary["ratio"] >= goal} if own == "jaxstab" else {})


def methods(options: argparse.Namespace) -> Rows:
    for name, shape in METHOD_SHAPES.items():
        sizes = TOY if options.toy else shape
        steps = {
            method: step_of(configured(**sizes, method=method.partition(",")[0]))
            for method in ("identity", "identity, control", *METHOD_GOALS)
        }
        rounds = 2 if options.toy else METHOD_ROUNDS[name] * options.more
        for method, summary in ratios(interleaved(steps, rounds), "identity").items():
            row = {"benchmark": "methods", "shape": name, "method": method, **summary}
            goal = METHOD_GOALS.get(method)
            yield row | ({"goal": f"<= {goal}", "met": summary["ratio"] <= goal} if goal else {})


def model_flops(config: Config) -> int:
    """FLOPs of a step, whole attention counted."""
    per_token = flops_per_token(read_table(config.model), config.data.length)["full"]
    return per_token * config.train.batch_size * config.data.length


def growth(options: argparse.Namespace) -> Rows:
    sizes = TOY if options.toy else dict(layers=4, width=256, length=256, vocabulary=8192, batch=4)
    sizes = {key: size for key, size in sizes.items() if key != "heads"}
    programs = {
        name: build(configured(heads=each["width"] // (8 if options.toy else 64), **each))
        for name, each in doubled(sizes).items()
    }
    steps = {name: step_of(program.setup.config, program) for name, program in programs.items()}
    summaries = ratios(interleaved(steps, 2 if options.toy else 6 * options.more), "base")
    flops = {name: model_flops(program.setup.config) for name, program in programs.items()}
    memory = {name: compiled(program).memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    for name, summary in summaries.items():
        grown = {"FLOPs": flops[name] / flops["base"], "temporaries": memory[name] / memory["base"]}
        row = {"benchmark": "growth", "doubled": name, **summary}
        yield row | {key: round(value, 3) for key, value in grown.items()}


def compile_times(options: argparse.Namespace) -> Rows:
    jax.config.update("jax_enable_compilation_cache", False)
    for layers in (2, 4) if options.toy else (6, 24, 96):
        program = build(configured(**{**(TOY if options.toy else SHAPE), "layers": layers}))
        start = time.perf_counter()
        compiled(program)
        yield {"benchmark": "compile", "layers": layers, "seconds": round(time.perf_counter() - start, 2)}


BENCHMARKS = {"frameworks": frameworks, "methods": methods, "growth": growth, "compile": compile_times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("benchmarks", nargs="*", metavar="benchmark", help=f"of {', '.join(BENCHMARKS)}; default all")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: that it runs, not how fast")
    parser.add_argument("--more", type=int, default=1, help="times as many rounds: narrower intervals, in more time")
    parser.add_argument("--nanodo", help="a checkout of google-deepmind/nanodo")
    options = parser.parse_args()
    if unknown := set(options.benchmarks) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    print(json.dumps({"machine": platform.processor() or platform.machine(), "jax": jax.__version__}), flush=True)
    with tempfile.TemporaryDirectory() as programs:  # what is taken twice, as a control is, is compiled once
        jax.config.update("jax_compilation_cache_dir", programs)
        for name in options.benchmarks or BENCHMARKS:
            for row in BENCHMARKS[name](options):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
