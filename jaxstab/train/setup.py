"""What a run is made of, apart from its state: all that follows from its config before anything is allocated."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

from jax.sharding import Mesh

from jaxstab import initialize, optimize, scale
from jaxstab.config import ConfigError, build_method
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.model.transformer import Transformer, read_table, reads_logits
from jaxstab.optimize import Optimizer
from jaxstab.reparam import METHODS, Method, Reparameterization, compose, reparameterize
from jaxstab.table import Effective, Stored, Table
from jaxstab.train.config import Config


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the functions of a run work with. They are pure functions of it and of arrays.

    Attributes:
      config: its vocabulary is resolved.
      mesh: the devices.
      model: called as `model.apply({"params": weights}, tokens, ...)`.
      table: rows of the effective weights.
      methods: the reparameterization's, the first nearest to the model.
      reparam: the methods bound to `table`; `stored_table` has the rows of what it stores.
      optimizer: clipping, update rule, schedule and projection.
      end: the tokenizer's end-of-document id, which `model.mask_documents` needs.
    """

    config: Config
    mesh: Mesh
    model: Transformer
    table: Table[Effective]
    methods: tuple[Method, ...]
    reparam: Reparameterization
    optimizer: Optimizer
    end: int | None = None

    @property
    def stored_table(self) -> Table[Stored]:
        """Rows of the stored parameters."""
        return self.reparam.table

    @functools.cached_property
    def weight_shardings(self) -> Any:
        """The shardings of the effective weights."""
        return scale.shardings(self.table, self.mesh)

    def with_model(self, **changes: Any) -> Setup:
        """The same run with a model whose config has these changes, and which tells no intermediates."""
        return dataclasses.replace(self, model=Transformer(dataclasses.replace(self.model.config, **changes)))


def set_up(config: Config, end: int | None = None, mesh: Mesh | None = None) -> Setup:
    """The setup of a run.

    Args:
      config: a config whose vocabulary is resolved.
      end: the tokenizer's end-of-document id, needed by `model.mask_documents`.
      mesh: overrides the config's mesh over this machine's devices.

    Raises:
      ConfigError: the config doesn't fit the devices, or its methods don't go together.
    """
    mesh = scale.make_mesh(config.mesh) if mesh is None else mesh
    config.check_devices(mesh.shape["replica"] * mesh.shape["fsdp"])
    projection = build_method(config.optimizer.projection, optimize.PROJECTIONS)
    kernel = attention_kernel(config.model, mesh, reads_logits(projection.needs))
    model = Transformer(dataclasses.replace(config.model, attention=kernel), intermediates=projection.needs)
    table, methods, reparam = reparameterized(config)
    if projection.shrinks and (config.model.qk_norm or not all(method.linear for method in methods)):
        raise ConfigError(
            f"optimizer.projection.method={config.optimizer.projection.method} scales stored "
            f"{' and '.join(projection.shrinks)}, which changes nothing under model.qk_norm or a reparameterization "
            "that divides a norm out; leave one of them out"
        )
    optimizer = optimize.build(config.optimizer, reparam.table, config.train.steps, table)
    return Setup(config, mesh, model, table, methods, reparam, optimizer, end)


def attention_kernel(config: ModelConfig, mesh: Mesh, needs_logits: bool) -> str:
    """What `model.attention` comes to on a mesh: `auto` takes a fused kernel where it does all that the run needs.

    It is `chunked`, of plain products, elsewhere: where logits are read or capped, where the sequence is split over
    devices, where the axis `tensor` splits queries but not keys, which no fused kernel takes, and, on a GPU, where
    attention stops at documents, whose mask cuDNN takes as an array [B, 1, T, T] and of an even length only.

    Raises:
      ConfigError: `cudnn` on something else than a GPU, `splash` on something else than a TPU.
    """
    device = mesh.devices.flat[0]
    for kernel, platform, name in (("cudnn", "gpu", "an NVIDIA GPU"), ("splash", "tpu", "a TPU")):
        if config.attention == kernel and device.platform != platform:
            raise ConfigError(f"model.attention={kernel} needs {name}, not a {device.platform}; auto runs everywhere")
    if config.attention != "auto":
        return config.attention
    splits = all(count % mesh.shape["tensor"] == 0 for count in (config.heads, config.kv_heads or config.heads))
    if needs_logits or config.attention_softcap or config.attention_sink or mesh.shape["sequence"] > 1 or not splits:
        return "chunked"
    if device.platform == "tpu":
        return "splash" if config.dtype == "bfloat16" else "chunked"
    nvidia = re.fullmatch(r"(\d+)\.\d+", getattr(device, "compute_capability", ""))  # others have "gfx90a" and such
    generation = int(nvidia[1]) if nvidia else 0
    largest_head = 256 if generation >= 9 else 128 if generation == 8 else 0
    fits = config.head_dim <= largest_head and not config.cudnn_obstacle and not config.mask_documents
    return "cudnn" if fits else "chunked"


def reparameterized(config: Config) -> tuple[Table[Effective], tuple[Method, ...], Reparameterization]:
    """The table of the effective weights, the chosen methods, and these bound to it."""
    table, methods = effective_table(config), compose(config.reparam, METHODS)
    return table, methods, reparameterize(table, *methods)


def effective_table(config: Config) -> Table[Effective]:
    """The table of the effective weights, with their initial scales."""
    backbone = build_method(config.init, initialize.SCALES)
    embedding = build_method(config.model.embedding, EMBEDDINGS)
    return initialize.scaled(read_table(config.model), backbone, embedding=embedding.multiplier)
