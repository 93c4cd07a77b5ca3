"""Faults: how each is drawn, and how it is planted, from outside of the library, in the process that trains.

A fault is a dict: its `fault`, `first` and `last` step, and what else its function reads. It is planted by a state that
changes just before a step, by gradients, rates or records that are replaced for some steps, or by a key of the config.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planting.ground import between, choose
from jaxstab.table import path_of

Random = np.random.Generator
Ground = dict[str, Any]
Drawn = dict[str, Any]

HIDDEN = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
DIVIDED_OUT = ("sigma_reparam", "weight_norm")  # a stored norm that is multiplied changes nothing there


@dataclasses.dataclass
class Planting:
    """What is done to a run from outside. Steps count from 1.

    Attributes:
      state: (step, state) -> the state that the step takes.
      gradients: (path, gradient [layers, ...] or [...]) -> gradient, in the steps of `bad_gradients`.
      hypers: (step, hypers) -> the step's.
      records: (records' function) -> another.
    """

    state: Callable[[int, Any], Any] = lambda step, state: state
    gradients: Callable[[str, Any], Any] | None = None
    bad_gradients: range = range(0)
    hypers: Callable[[int, Any], Any] = lambda step, hypers: hypers
    records: Callable[[Callable], Callable] = lambda records: records


@dataclasses.dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
      draw: its size and place, on a ground.
      plant: what it does to the run; None where keys of the config are the fault.
      fits: whether it can do harm, or be there at all, on a ground.
      resumes: whether it happens while a stopped run is started again.
    """

    draw: Callable[[Random, Ground], Drawn]
    plant: Callable[[Drawn, Path], Planting] | None = None
    fits: Callable[[Ground], bool] = lambda ground: True
    resumes: bool = False


# Where a fault is.


def _step(random: Random, ground: Ground, lasting: int = 1) -> Drawn:
    first = int(random.integers(90, ground["train.steps"] - 50 - lasting))
    return {"first": first, "last": first + lasting - 1}


def _matrix(random: Random, ground: Ground) -> Drawn:
    roles = [*HIDDEN, *(["gate_proj"] if ground["model.mlp"] == "swiglu" else []), "embed_tokens"]
    roles += [] if ground["model.tie_embeddings"] else ["lm_head"]
    role = str(random.choice(roles))
    return {"role": role, "layer": int(random.integers(ground["model.layers"])) if role.endswith("_proj") else None}


def _hidden(random: Random, ground: Ground) -> Drawn:
    return {"role": str(random.choice(HIDDEN)), "layer": int(random.integers(ground["model.layers"]))}


def _main_leaf(parts: list[str], role: str) -> bool:
    """Whether a leaf is of a role, and none of the vectors and scalars that stand beside its matrix."""
    return role in parts and parts[-1] not in ("gate", "alpha", "gamma", "g", "bias", "u", "v")


def _changed(tree: Any, choose_leaf: Callable[[list[str], Any], bool], change: Callable[[Any], Any]) -> Any:
    import jax

    changed = []

    def leaf(path: Any, array: Any) -> Any:
        parts = path_of(path).split("/")
        if not (hasattr(array, "shape") and choose_leaf(parts, array)):
            return array
        changed.append(parts)
        return jax.device_put(change(array), array.sharding)

    tree = jax.tree_util.tree_map_with_path(leaf, tree)
    if not changed:
        raise ValueError("the fault is nowhere in the state")
    return tree


def _once(fault: Drawn, change: Callable[[Any], Any]) -> Planting:
    """A state that is changed just before the fault's first step."""
    return Planting(state=lambda step, state: change(state) if step == fault["first"] else state)


def _raw(fault: Drawn, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def whole(state: Any) -> Any:
        def is_matrix(parts: list[str], array: Any) -> bool:
            return _main_leaf(parts, fault["role"]) and array.ndim >= 2

        return state._replace(raw=_changed(state.raw, is_matrix, change))

    return whole


def _at(fault: Drawn) -> Any:
    return slice(None) if fault.get("layer") is None else fault["layer"]


# Weights changed from outside.


def draw_matrix(random: Random, ground: Ground) -> Drawn:
    factor = between(random, 1.3, 30) ** (1 if random.random() < 0.7 else -1)
    return _step(random, ground) | _matrix(random, ground) | {"factor": factor}


def plant_matrix(fault: Drawn, corpus: Path) -> Planting:
    return _once(fault, _raw(fault, lambda array: array.at[_at(fault)].multiply(fault["factor"])))


def draw_rows(random: Random, ground: Ground) -> Drawn:
    return _step(random, ground) | {"role": "embed_tokens", "layer": None, "factor": between(random, 3, 30), "rows": 5}


def plant_rows(fault: Drawn, corpus: Path) -> Planting:
    rows = np.array(json.loads((corpus / "frequent.json").read_text())[: fault["rows"]])
    return _once(fault, _raw(fault, lambda array: array.at[rows].multiply(fault["factor"])))


def draw_entry(random: Random, ground: Ground) -> Drawn:
    drawn = _step(random, ground) | _matrix(random, ground)
    return drawn | {"value": between(random, 1, 1000), "entry": [float(random.random()) for _ in range(2)]}


def plant_entry(fault: Drawn, corpus: Path) -> Planting:
    def change(array: Any) -> Any:
        rows, columns = array.shape[-2:]
        entry = int(fault["entry"][0] * rows), int(fault["entry"][1] * columns)
        place = entry if fault["layer"] is None else (fault["layer"], *entry)
        return array.at[place].set(fault["value"])

    return _once(fault, _raw(fault, change))


def draw_gain(random: Random, ground: Ground) -> Drawn:
    return _step(random, ground) | {"norm": float(random.random()), "factor": between(random, 3, 15)}


def gain_place(raw: Any, fraction: float) -> tuple[str, int | None]:
    """The gain that stands at a fraction of all gains: its path, and its layer or None."""
    import jax

    leaves = [(path_of(path), array) for path, array in jax.tree_util.tree_leaves_with_path(raw)]
    gains = [(path, array) for path, array in leaves if "norm" in path and path.endswith("/scale")]
    places = [(path, layer) for path, array in gains for layer in (range(len(array)) if array.ndim > 1 else [None])]
    return places[int(fraction * len(places))]


def plant_gain(fault: Drawn, corpus: Path) -> Planting:
    def change(state: Any) -> Any:
        path, layer = gain_place(state.raw, fault["norm"])
        place = slice(None) if layer is None else layer

        def multiply(array: Any) -> Any:
            return array.at[place].multiply(fault["factor"])

        return state._replace(raw=_changed(state.raw, lambda parts, _: "/".join(parts) == path, multiply))

    return _once(fault, change)


# The optimizer's state, and gradients.


def draw_moment(random: Random, ground: Ground) -> Drawn:
    kind = str(random.choice(("second lost", "second corrupted", "both lost")))
    role = {"role": str(random.choice(("embed_tokens",)))} if ground["optimizer.rule.method"] == "muon" else {}
    drawn = _step(random, ground) | _matrix(random, ground) | role | {"kind": kind}
    if drawn["role"] in ("embed_tokens", "lm_head"):
        drawn["layer"] = None
    return drawn | {"factor": between(random, 1e-4, 0.1) if kind == "second corrupted" else 0.0}


def plant_moment(fault: Drawn, corpus: Path) -> Planting:
    names = ("nu",) if fault["kind"].startswith("second") else ("nu", "mu")

    def is_moment(parts: list[str], array: Any) -> bool:
        return any(name in parts for name in names) and _main_leaf(parts, fault["role"]) and array.ndim >= 2

    def change(state: Any) -> Any:
        multiply: Callable[[Any], Any] = lambda array: array.at[_at(fault)].multiply(fault["factor"])  # noqa: E731
        return state._replace(optimizer=_changed(state.optimizer, is_moment, multiply))

    return _once(fault, change)


def draw_gradient(random: Random, ground: Ground) -> Drawn:
    kind = str(random.choice(("scaled", "noise")))
    size = between(random, 10, 1000) if kind == "scaled" else between(random, 3, 100)
    return _step(random, ground, int(random.integers(2, 5))) | _hidden(random, ground) | {"kind": kind, "size": size}


def plant_gradient(fault: Drawn, corpus: Path) -> Planting:
    def gradients(path: str, gradient: Any) -> Any:
        import jax
        import jax.numpy as jnp

        if not (fault["role"] in path.split("/") and gradient.ndim == 3):
            return gradient
        own = gradient[fault["layer"]]
        if fault["kind"] == "scaled":
            return gradient.at[fault["layer"]].multiply(fault["size"])
        noise = jax.random.normal(jax.random.key(0), own.shape) * jnp.sqrt(jnp.mean(own**2)) * fault["size"]
        return gradient.at[fault["layer"]].add(noise)

    return Planting(gradients=gradients, bad_gradients=range(fault["first"], fault["last"] + 1))


def draw_nan(random: Random, ground: Ground) -> Drawn:
    policy = {"stability.on_nonfinite": str(random.choice(("skip", "stop")))}
    return _step(random, ground) | _hidden(random, ground) | {"config": policy}


def plant_nan(fault: Drawn, corpus: Path) -> Planting:
    def gradients(path: str, gradient: Any) -> Any:
        is_bad = fault["role"] in path.split("/") and gradient.ndim == 3
        return gradient.at[fault["layer"], 0, 0].set(float("nan")) if is_bad else gradient

    return Planting(gradients=gradients, bad_gradients=range(fault["first"], fault["first"] + 1))


# Rates, decay and scales.


def draw_glitch(random: Random, ground: Ground) -> Drawn:
    return _step(random, ground, int(random.integers(3, 11))) | {"factor": between(random, 5, 70)}


def plant_glitch(fault: Drawn, corpus: Path) -> Planting:
    def hypers(step: int, given: Any) -> Any:
        is_bad = fault["first"] <= step <= fault["last"]
        return given._replace(learning_rate=given.learning_rate * fault["factor"]) if is_bad else given

    return Planting(hypers=hypers)


def draw_rate(random: Random, ground: Ground) -> Drawn:
    rate = between(random, 10, 35) * max(1e-3, ground["optimizer.learning_rate"])
    return _from_start({"optimizer.learning_rate": round(rate, 5), "optimizer.warmup": 0})


def draw_decay(random: Random, ground: Ground) -> Drawn:
    strength = between(random, 0.003, 0.03)  # of a weight, in a step at the peak rate
    decay = round(strength / ground["optimizer.learning_rate"], 3)
    return _from_start({"optimizer.weight_decay": decay})


def _from_start(config: dict[str, Any]) -> Drawn:
    return {"first": 1, "last": 0, "config": config}


def draw_embedding(random: Random, ground: Ground) -> Drawn:
    return {"first": 1, "last": 0, "role": "embed_tokens", "layer": None, "factor": 1 / between(random, 3, 100)}


def draw_heads(random: Random, ground: Ground) -> Drawn:
    head = int(random.integers(ground["model.kv_heads"]))
    layer = int(random.integers(ground["model.layers"]))
    growth = {"growth": float(random.uniform(0.02, 0.04)), "heads": ground["model.heads"]}
    return _step(random, ground, 60) | {"layer": layer, "head": head, "kv_heads": ground["model.kv_heads"]} | growth


def plant_heads(fault: Drawn, corpus: Path) -> Planting:
    """Keys of one head, and the queries that read them, grow by a constant factor a step."""

    def state(step: int, given: Any) -> Any:
        if not fault["first"] <= step <= fault["last"]:
            return given
        for role, heads in (("q_proj", fault["heads"]), ("k_proj", fault["kv_heads"])):
            share = heads // fault["kv_heads"]

            def change(array: Any, heads: int = heads, share: int = share) -> Any:
                size = array.shape[-1] // heads
                columns = slice(fault["head"] * share * size, (fault["head"] + 1) * share * size)
                return array.at[fault["layer"], :, columns].multiply(1 + fault["growth"])

            given = _raw({"role": role}, change)(given)
        return given

    return Planting(state=state)


def draw_logits(random: Random, ground: Ground) -> Drawn:
    place = {"role": "lm_head", "layer": None, "config": {"train.z_loss": 0.0}}
    return _step(random, ground, 60) | place | {"growth": float(random.uniform(0.015, 0.04))}


def plant_logits(fault: Drawn, corpus: Path) -> Planting:
    grow = _raw(fault, lambda array: array * (1 + fault["growth"]))
    return Planting(state=lambda step, state: grow(state) if fault["first"] <= step <= fault["last"] else state)


# Data.


def draw_repeated(random: Random, ground: Ground) -> Drawn:
    return _step(random, ground, int(random.integers(8, 31))) | {"size": ground["train.batch_size"]}


def plant_repeated(fault: Drawn, corpus: Path) -> Planting:
    def repeated(records: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        start, end = ((fault[name] - 1) * fault["size"] for name in ("first", "last"))

        def read(self: Any, position: int, count: int, rows: slice = slice(None)) -> np.ndarray:
            return records(self, start if start <= position <= end else position, count, rows)

        return read

    return Planting(records=repeated)


def draw_foreign(random: Random, ground: Ground) -> Drawn:
    kind = choose(random, {"other text": 0.4, "random tokens": 0.3, "one token": 0.15, "one record": 0.15})
    share = choose(random, {1.0: 0.6, 0.5: 0.4})
    lasting = int(random.integers(3, 21))
    return _step(random, ground, lasting) | {"kind": kind, "share": share, "size": ground["train.batch_size"]}


def plant_foreign(fault: Drawn, corpus: Path) -> Planting:
    other, vocabulary = np.load(corpus / "other.npy"), int((corpus / "vocabulary").read_text())

    def garbage(place: int, length: int) -> np.ndarray:
        random = np.random.default_rng(0 if fault["kind"] == "one record" else place)
        if fault["kind"] == "other text":
            start = int(random.integers(len(other) - length))
            return other[start : start + length]
        if fault["kind"] == "one token":
            return np.full(length, random.integers(vocabulary), np.int32)
        return random.integers(0, vocabulary, length, dtype=np.int32)

    first, end = (fault["first"] - 1) * fault["size"], fault["last"] * fault["size"]
    return Planting(records=lambda records: replacing(records, garbage, first, end, fault["size"], fault["share"]))


def replacing(
    records: Callable[..., np.ndarray],
    garbage: Callable[[int, int], np.ndarray],
    first: int,
    end: int,
    size: int,
    share: float,
) -> Callable[..., np.ndarray]:
    """`Batches.records`, with garbage in a share of the rows of each batch of `size` from position first to end.

    What stands at a position is a function of the position, as it is for the text.
    """

    def read(self: Any, position: int, count: int, rows: slice = slice(None)) -> np.ndarray:
        replaced = records(self, position, count, rows).copy()
        for row, place in enumerate(range(position, position + count)[rows]):
            if first <= place < end and place % size < round(share * size):
                replaced[row] = garbage(place, replaced.shape[1])
        return replaced

    return read


# A run that is stopped and goes on wrongly.


def draw_resume(random: Random, ground: Ground) -> Drawn:
    return _step(random, ground)


def plant_resumed_moments(fault: Drawn, corpus: Path) -> Planting:
    """All moments are lost."""

    def change(state: Any) -> Any:
        def is_moment(parts: list[str], array: Any) -> bool:
            return bool({"mu", "nu", "momentum"} & set(parts))

        return state._replace(optimizer=_changed(state.optimizer, is_moment, lambda array: array * 0))

    return _once(fault, change)


def draw_resumed_position(random: Random, ground: Ground) -> Drawn:
    return _step(random, ground) | {"back": float(random.uniform(0.3, 1)), "size": ground["train.batch_size"]}


def plant_resumed_position(fault: Drawn, corpus: Path) -> Planting:
    """Data that was read is read again."""
    start = (fault["first"] - 1) * fault["size"]
    back = int(fault["back"] * fault["first"]) * fault["size"]

    def shifted(records: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def read(self: Any, position: int, count: int, rows: slice = slice(None)) -> np.ndarray:
            return records(self, max(0, position - back) if position >= start else position, count, rows)

        return read

    return Planting(records=shifted)


def plant_resumed_rate(fault: Drawn, corpus: Path) -> Planting:
    """The schedule begins anew, with its warmup."""

    def hypers(step: int, given: Any) -> Any:
        return given._replace(position=given.position - (fault["first"] - 1)) if step >= fault["first"] else given

    return Planting(hypers=hypers)


def _undivided(ground: Ground) -> bool:
    return ground["reparam.method"] not in DIVIDED_OUT


def _reads_embedding(ground: Ground) -> bool:
    plain = ground["model.embedding.method"] in ("plain", "unit", "scaled")
    return plain and _undivided(ground) and not ground["model.tie_embeddings"]


FAULTS: dict[str, Fault] = {
    "matrix": Fault(draw_matrix, plant_matrix),
    "rows": Fault(draw_rows, plant_rows),
    "entry": Fault(draw_entry, plant_entry),
    "gain": Fault(draw_gain, plant_gain),
    "moment": Fault(draw_moment, plant_moment),
    "gradient": Fault(draw_gradient, plant_gradient, lambda ground: ground["reparam.method"] != "mlra"),
    "nan": Fault(draw_nan, plant_nan, lambda ground: ground["reparam.method"] != "mlra"),
    "rate glitch": Fault(draw_glitch, plant_glitch),
    "rate too high": Fault(draw_rate),
    "decay": Fault(draw_decay),
    "embedding": Fault(draw_embedding, plant_matrix, _reads_embedding),
    "attention logits": Fault(
        draw_heads,
        plant_heads,
        lambda ground: _undivided(ground) and ground["reparam.method"] != "mlra" and not ground["model.qk_norm"],
    ),
    "output logits": Fault(
        draw_logits, plant_logits, lambda ground: _undivided(ground) and not ground["model.tie_embeddings"]
    ),
    "repeated data": Fault(draw_repeated, plant_repeated),
    "foreign data": Fault(draw_foreign, plant_foreign),
    "resumed without moments": Fault(draw_resume, plant_resumed_moments, resumes=True),
    "resumed at another position": Fault(draw_resumed_position, plant_resumed_position, resumes=True),
    "resumed at another rate": Fault(draw_resume, plant_resumed_rate, resumes=True),
}
