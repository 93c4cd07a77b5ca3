"""A family of Hugging Face models, both ways: names of modules, keys of config.json, and how matrices lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxstab.config import ConfigError, UserError, build_method, flatten, from_flat, unchosen
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EMBEDDINGS

# What is no part of a model's function of one document: how it is computed, and how it is trained. Whether a head is
# tied is told by the tensors, since a gate or a constant may have parted the two.
FREE = ("dtype", "remat", "attention", "mask_documents", "tie_embeddings", "embedding.")

UNREAD = {"rotary": ("position_offset",), "learned": ("rope_theta", "rotary_fraction")}


class Key(NamedTuple):
    """A key of config.json and what it is here.

    Attributes:
      theirs, ours: its names, `ours` without "model.".
      default: its value where config.json lacks it; None, and null there, say nothing.
      values: {theirs: ours}, where the two name things differently.
      null: the value of ours that they write as null.
    """

    theirs: str
    ours: str
    default: Any = None
    values: Mapping[Any, Any] = {}
    null: Any = None


class Layout(NamedTuple):
    """How a family's linear layers lie.

    Attributes:
      transposed: whether a weight is [out, in], as torch's; ours are [in, out].
      split: (array whose last axis is a fused output, number of parts, heads) -> the parts.
      join: (parts, heads) -> the fused array.
    """

    transposed: bool
    split: Callable[[np.ndarray, int, int], list[np.ndarray]]
    join: Callable[[list[np.ndarray], int], np.ndarray]


def _side_by_side(array: np.ndarray, parts: int, heads: int) -> list[np.ndarray]:
    return np.split(array, parts, axis=-1)


TORCH = Layout(True, _side_by_side, lambda arrays, heads: np.concatenate(arrays, axis=-1))


@dataclasses.dataclass(frozen=True)
class Family:
    """One class of `transformers`.

    Attributes:
      architecture, model_type: of config.json.
      modules: {their module: ours, or several of ours that theirs holds fused}; `{}` is the number of a block.
      keys: of config.json, those that vary.
      ours: keys of the model that this class fixes, where they aren't the defaults.
      theirs: keys of config.json that must have a value, or be missing where that is what a missing one means.
      prefix: of their modules but the head's, which some files leave out.
      head: the name of the head's tensor.
      ignored: ends of names of tensors that are no parameters.
      layout: how linear layers lie.
      gates: {their gate: our modules whose matrix, norm and bias it multiplies}, of models that are not merged yet.
      branch: config.json -> a constant on what o_proj and down_proj put out.
      full_attention: whether config.json has to say that no layer has a sliding window.
      norm_offset: what is added to a stored gain of a norm before it is used.
    """

    architecture: str
    model_type: str
    modules: Mapping[str, str | tuple[str, ...]]
    keys: tuple[Key, ...]
    ours: Mapping[str, Any]
    theirs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefix: str = "model."
    head: str = "lm_head.weight"
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    layout: Layout = TORCH
    gates: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    branch: Callable[[Mapping[str, Any]], float] = lambda theirs: 1.0
    full_attention: bool = False
    norm_offset: float = 0.0

    def model(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """The model that a config.json describes; raises UserError where it isn't one of ours."""
        values = _lifted(theirs)
        if self.full_attention and not values.get("layer_types"):
            raise UserError("its config.json has no layer_types, so that layers have sliding windows, unknown here")
        for name, fixed in self.theirs.items():
            if values.get(name, fixed) != fixed:
                raise UserError(f"its config.json has {name}={values[name]!r}; known is {fixed!r} alone")
        flat: dict[str, Any] = dict(self.ours)
        for key in self.keys:
            value = _read(key, values)
            if value is None:
                continue
            if flat.setdefault(key.ours, value) != value:
                raise UserError(
                    f"its config.json has {key.theirs}={values.get(key.theirs)!r}, and "
                    f"model.{key.ours}={flat[key.ours]!r} by another key; the two must agree"
                )
        try:
            return _canonical(from_flat(ModelConfig, flat))
        except ConfigError as error:
            raise UserError(f"its config.json describes no model: {error}") from error

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """The config.json of a model that `differences` finds nothing in."""
        resolved = flatten(_resolved(model))
        written: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type, **self.theirs}
        for key in self.keys:
            value = None if resolved[key.ours] == key.null else resolved[key.ours]
            written[key.theirs] = next((theirs for theirs, ours in key.values.items() if ours == value), value)
        layers = {"layer_types": ["full_attention"] * model.layers} if self.full_attention else {}
        return _lowered({**written, **layers})

    def embedding_constant(self, width: int) -> float:
        """What an embedding of this class is multiplied by."""
        embedding = from_flat(ModelConfig, {key: self.ours[key] for key in self.ours if key.startswith("embedding.")})
        return build_method(embedding.embedding, EMBEDDINGS).multiplier(1.0, width)

    def differences(self, model: ModelConfig) -> list[str]:
        """What keeps a model from this class, as "model.qk_norm=True (not False)"."""
        given, fixed = flatten(_canonical(model)), flatten(ModelConfig()) | dict(self.ours)
        allowed = {key: (value,) for key, value in fixed.items()}
        allowed |= {key.ours: tuple(key.values.values()) for key in self.keys}
        different = [
            f"model.{key}={value} (not {' or '.join(map(str, allowed[key]))})"
            for key, value in given.items()
            if allowed[key] and value not in allowed[key] and not key.startswith(FREE + UNREAD[model.positions])
            if key not in unchosen(given)
        ]
        if build_method(model.embedding, EMBEDDINGS).normalized:
            different.append(f"model.embedding.method={model.embedding.method} (there is no norm)")
        return different


def _read(key: Key, values: Mapping[str, Any]) -> Any:
    value = values.get(key.theirs, key.default)
    if value is None or not key.values:
        return value
    if not isinstance(value, str | int | float) or value not in key.values:
        raise UserError(f"its config.json has {key.theirs}={value!r}; known: {', '.join(map(str, key.values))}")
    return key.values[value]


def _lifted(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the entries of rope_parameters beside the others, under today's names, checked for what no
    model of ours has."""
    rope: dict[str, Any] = {}
    for section in ("rope_scaling", "rope_parameters"):
        entries = theirs.get(section) or {}
        if not isinstance(entries, Mapping):
            raise UserError(f"its config.json has {section}={entries!r}, which is no object")
        kind = entries.get("rope_type", entries.get("type", "default"))
        if kind != "default":
            raise UserError(f"its config.json has a rotary embedding of rope_type={kind!r}; known is 'default' alone")
        rope |= entries
    layers = theirs.get("layer_types") or []
    if not isinstance(layers, list) or any(each != "full_attention" for each in layers):
        raise UserError("its config.json has layer_types that aren't full_attention, which alone is known")
    if theirs.get("quantization_config"):
        raise UserError(
            "its config.json has a quantization_config: its weights are quantized; take the model as it was"
        )
    renamed = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
    old = {name: theirs[key] for key, name in renamed.items() if key in theirs}
    return {**theirs, **old, **rope}


def _lowered(written: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_lifted`: both forms, since versions of transformers read one or the other."""
    names = [name for name in ("rope_theta", "partial_rotary_factor") if name in written]
    if names:
        written["rope_parameters"] = {"rope_type": "default", **{name: written[name] for name in names}}
    return written


def _resolved(model: ModelConfig) -> ModelConfig:
    """The model with the numbers that 0 stands for."""
    return dataclasses.replace(
        model,
        kv_heads=model.kv_heads or model.heads,
        head_size=model.head_dim,
        mlp_width=model.mlp_width or 4 * model.width,
    )


def _canonical(model: ModelConfig) -> ModelConfig:
    """The model with 0 for the numbers that it stands for, so that one model has one config."""
    model = _resolved(model)
    return dataclasses.replace(
        model,
        kv_heads=0 if model.kv_heads == model.heads else model.kv_heads,
        head_size=0 if model.head_size * model.heads == model.width else model.head_size,
        mlp_width=0 if model.mlp_width == 4 * model.width else model.mlp_width,
    )


def untied(model: ModelConfig) -> ModelConfig:
    """The model with a head of its own, as its effective weights always have one."""
    return dataclasses.replace(model, tie_embeddings=False)
