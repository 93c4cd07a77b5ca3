"""The configuration of a run: every room's keys, and what must hold between them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from jaxstab.config import (
    ConfigError,
    MethodConfig,
    build_method,
    flatten,
    from_config_dict,
    option,
    section,
    to_config_dict,
)
from jaxstab.data import DataConfig
from jaxstab.initialize import SCALES, InitConfig, Transfer
from jaxstab.logging import LogConfig
from jaxstab.model.config import ModelConfig
from jaxstab.optimize import OptimizerConfig
from jaxstab.reparam import METHODS, ReparamConfig, compose
from jaxstab.scale import MeshConfig
from jaxstab.stability import StabilityConfig
from jaxstab.train.checkpoint import CheckpointConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = option(1000, "Updates, over which the schedule is laid.")
    extend: int = option(0, "Updates after those, at the schedule's last value; a finished run goes on by it.")
    batch_size: int = option(32, "Sequences in the global batch.")
    accumulation: int = option(1, "Micro-batches that a batch is taken in.")
    seed: int = option(0, "Seed of the initial weights (data.seed is another).")
    z_loss: float = option(
        1e-4, "Coefficient of log(Z)^2. Nishida et al. print `16e-4` across a split cell, most likely 1e-4."
    )
    loss_chunk: int = option(128, "Positions of each sequence whose logits are in memory at once.")
    length_warmup: int = option(0, "Updates over which sequences grow from the first of warmup_lengths to data.length.")
    warmup_lengths: tuple[int, ...] = option(
        (), "Lengths on that way, ascending, each a program of its own to compile: records are cut to them."
    )

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "accumulation", "loss_chunk"):
            if getattr(self, key) < 1:
                raise ConfigError(f"train.{key}={getattr(self, key)} must be at least 1")
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"train.batch_size={self.batch_size} is not divisible by train.accumulation={self.accumulation}"
            )
        if (self.length_warmup > 0) != bool(self.warmup_lengths):
            raise ConfigError(
                f"train.length_warmup={self.length_warmup} and train.warmup_lengths={self.warmup_lengths} "
                "take effect together: set both or neither"
            )
        ascending = tuple(sorted({length for length in self.warmup_lengths if length > 0}))
        if self.length_warmup < 0 or self.warmup_lengths != ascending:
            raise ConfigError(
                f"train.length_warmup={self.length_warmup} and train.warmup_lengths={self.warmup_lengths} must be "
                "positive, the lengths ascending"
            )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training."""

    every: int = option(250, "Steps between evaluations, and one at the end; 0 evaluates at the end only.")
    batches: int = option(16, "Validation batches in an evaluation; 0 takes all.")
    final_batches: int = option(0, "Batches of every set in the evaluation at the end; 0 takes all.")
    texts: tuple[str, ...] = option((), "Further text sets, as name=glob, evaluated at the end.")
    sample_length: int = option(0, "Tokens of a sample of generated text shown at each evaluation; 0 shows none.")
    sample_prompt: str = option("", "What samples begin with; empty begins a document.")
    temperature: float = option(0.8, "Sampling temperature; 0 is greedy.")


@dataclasses.dataclass(frozen=True)
class Config:
    """A run."""

    model: ModelConfig = section(ModelConfig)
    init: MethodConfig = section(InitConfig)
    reparam: MethodConfig = section(ReparamConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    data: DataConfig = section(DataConfig)
    mesh: MeshConfig = section(MeshConfig)
    train: TrainConfig = section(TrainConfig)
    stability: StabilityConfig = section(StabilityConfig)
    eval: EvalConfig = section(EvalConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    log: LogConfig = section(LogConfig)

    def __post_init__(self) -> None:
        methods = compose(self.reparam, METHODS)
        backbone = build_method(self.init, SCALES)
        scales_branches = isinstance(backbone, Transfer) and backbone.scales_branches
        if scales_branches and any(method.kind == "constant" for method in methods):
            raise ConfigError(
                f"init.method={self.init.method} and reparam.method={self.reparam.method} both put a constant on the "
                "residual branches; leave one out"
            )
        if self.data.length > self.model.max_length:
            raise ConfigError(f"data.length={self.data.length} is longer than model.max_length={self.model.max_length}")
        kept = self.checkpoint.every * (self.checkpoint.keep_last - 1)
        if self.stability.rolls_back and not 0 < self.stability.rollback_steps <= kept:
            raise ConfigError(
                f"stability.rollback_steps={self.stability.rollback_steps} needs checkpoints as old as that: raise "
                f"checkpoint.keep_last={self.checkpoint.keep_last} or checkpoint.every={self.checkpoint.every}"
            )
        if max(self.train.warmup_lengths, default=0) >= self.data.length:
            raise ConfigError(
                f"train.warmup_lengths={self.train.warmup_lengths} must be shorter than data.length={self.data.length}"
            )

    @property
    def total_steps(self) -> int:
        """The step at which the run ends."""
        return self.train.steps + self.train.extend

    def with_vocabulary(self, vocabulary: int) -> Config:
        """The config for a tokenizer of that vocabulary; raises ConfigError where the model's is smaller."""
        if self.model.vocabulary == 0:
            return dataclasses.replace(self, model=dataclasses.replace(self.model, vocabulary=vocabulary))
        if self.model.vocabulary < vocabulary:
            raise ConfigError(
                f"model.vocabulary={self.model.vocabulary} is smaller than the {vocabulary} pieces of "
                f"data.tokenizer={self.data.tokenizer}; set it to 0 or at least {vocabulary}"
            )
        return self

    def check_devices(self, data_parallel: int) -> None:
        """Raises ConfigError where a micro-batch can't be spread over the devices."""
        micro = self.train.batch_size // self.train.accumulation
        if micro % data_parallel:
            raise ConfigError(
                f"train.batch_size={self.train.batch_size} in {self.train.accumulation} micro-batches is not divisible "
                f"over {data_parallel} data-parallel devices (mesh.replica x mesh.fsdp)"
            )


# What may differ when a run is continued: where it runs and what is looked at, not what is computed; and what is done
# about the next spike, for a run that one has stopped.
NOT_TRAINING = (
    "stability.",
    "mesh.",
    "eval.",
    "checkpoint.",
    "log.",
    "train.extend",
    "model.remat",
    "data.cache_dir",
    "data.workers",
)


def training_keys(config: Config) -> dict[str, Any]:
    """The flat config without what doesn't change the training."""
    return {key: value for key, value in flatten(config).items() if not key.startswith(NOT_TRAINING)}


def default_config() -> ConfigDict:
    """The overridable defaults, from which the files in configs/ start."""
    return to_config_dict(Config())


def resolve(values: ConfigDict) -> Config:
    """Reads an overridden ConfigDict, once; raises ConfigError at what doesn't fit."""
    return from_config_dict(Config, values)
