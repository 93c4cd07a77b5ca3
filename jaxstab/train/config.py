"""The configuration of a run: every room's keys, and what must hold between them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxstab import optimize
from jaxstab.config import (
    ConfigError,
    MethodConfig,
    Options,
    Range,
    build_method,
    from_config_dict,
    option,
    section,
    to_config_dict,
    unchosen,
)
from jaxstab.data import DataConfig
from jaxstab.initialize import SCALES, InitConfig, Transfer
from jaxstab.logging import LogConfig
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import reads_logits
from jaxstab.optimize import PROJECTIONS, OptimizerConfig
from jaxstab.reparam import METHODS, ReparamConfig, compose
from jaxstab.scale import HostsConfig, MeshConfig
from jaxstab.search import SEARCHES, Search, SearchConfig
from jaxstab.stability import StabilityConfig
from jaxstab.train.checkpoint import CheckpointConfig

LAST_STEP = 2**31 - 1  # steps are counted in int32 on the device


@dataclasses.dataclass(frozen=True)
class TrainConfig(Options):
    """The training loop."""

    steps: int = option(1000, "Updates, over which the schedule is laid.", Range(1, LAST_STEP))
    extend: int = option(
        0,
        "Updates after train.steps, at the schedule's last rate; a finished run goes on for as many.",
        Range(0, LAST_STEP),
    )
    batch_size: int = option(32, "Sequences in the global batch.", Range(1))
    accumulation: int = option(1, "Micro-batches that a batch is taken in.", Range(1))
    seed: int = option(0, "Seed of the initial weights (data.seed is another).", Range(0, 2**31 - 1))
    z_loss: float = option(
        1e-4, "Coefficient of log(Z)^2. Nishida et al. print `16e-4` across a split cell, most likely 1e-4.", Range(0)
    )
    loss_chunk: int = option(128, "Positions of each sequence whose logits are in memory at once.", Range(1))
    length_warmup: int = option(
        0, "Updates over which sequences grow from the first of warmup_lengths to data.length.", Range(0)
    )
    warmup_lengths: tuple[int, ...] = option(
        (), "Lengths on the way to data.length, ascending, that records are cut to; each compiles a program.", Range(1)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps + self.extend > LAST_STEP:
            raise ConfigError(f"train.steps={self.steps} and train.extend={self.extend} are beyond step {LAST_STEP}")
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"train.batch_size={self.batch_size} is not divisible by train.accumulation={self.accumulation}"
            )
        if (self.length_warmup > 0) != bool(self.warmup_lengths):
            raise ConfigError(
                f"train.length_warmup={self.length_warmup} and train.warmup_lengths={self.warmup_lengths} "
                "take effect together: set both or neither"
            )
        if self.warmup_lengths != tuple(sorted(set(self.warmup_lengths))):
            raise ConfigError(f"train.warmup_lengths={self.warmup_lengths} must be ascending, each of them once")


VALIDATION = "validation"  # the set that is held out of the source


@dataclasses.dataclass(frozen=True)
class EvalConfig(Options):
    """Evaluation during training."""

    every: int = option(250, "Steps between evaluations, and one at the end; 0 evaluates at the end only.", Range(0))
    batches: int = option(16, "Validation batches in an evaluation; 0 takes all.", Range(0))
    final_batches: int = option(0, "Batches of every set in the evaluation at the end; 0 takes all.", Range(0))
    texts: tuple[str, ...] = option((), "Further text sets, as name=glob, evaluated at the end.")
    benchmarks: tuple[str, ...] = option((), "Of wikitext and lambada, those that are measured (docs/evaluate.md).")
    benchmark_data: str = option("", "The directory with their files; it is only read.")
    benchmark_every: int = option(
        0, "Steps between two measurements of them, and one at the end; 0 measures at the end only.", Range(0)
    )
    benchmark_limit: int = option(0, "Documents of each, the first ones; 0 takes all.", Range(0))
    sample_length: int = option(
        0, "Tokens of a sample of generated text shown at each evaluation; 0 shows none.", Range(0)
    )
    sample_prompt: str = option("", "What samples begin with; empty begins a document.")
    temperature: float = option(0.8, "Sampling temperature; 0 is greedy.", Range(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [VALIDATION, *self.benchmarks]
        for text in self.texts:
            name, _, files = text.partition("=")
            if not files or not re.fullmatch(r"[\w.-]+", name):
                raise ConfigError(f"eval.texts takes name=glob, not {text!r}; a name is of letters, digits, _, . and -")
            if name in names:
                raise ConfigError(f"eval.texts={text} has the name of another set that is measured; take another name")
            names.append(name)
        if self.benchmarks and not self.benchmark_data:
            raise ConfigError(
                f"eval.benchmarks={self.benchmarks} needs eval.benchmark_data, the directory with their files"
            )


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """A run."""

    model: ModelConfig = section(ModelConfig)
    init: MethodConfig = section(InitConfig)
    init_search: MethodConfig = section(SearchConfig)
    reparam: MethodConfig = section(ReparamConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    data: DataConfig = section(DataConfig)
    mesh: MeshConfig = section(MeshConfig)
    hosts: HostsConfig = section(HostsConfig)
    train: TrainConfig = section(TrainConfig)
    stability: StabilityConfig = section(StabilityConfig)
    eval: EvalConfig = section(EvalConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    log: LogConfig = section(LogConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
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
        oldest = self.checkpoint.every * (self.checkpoint.keep_last - 1)  # steps between it and the newest one
        if self.stability.rolls_back and not 0 < self.stability.rollback_steps <= oldest:
            raise ConfigError(
                f"stability.rollback_steps={self.stability.rollback_steps} needs checkpoints as old as that: raise "
                f"checkpoint.keep_last={self.checkpoint.keep_last} or checkpoint.every={self.checkpoint.every}"
            )
        if self.optimizer.restart_above and "skip" not in (self.stability.on_spike, self.stability.on_nonfinite):
            raise ConfigError(
                f"optimizer.restart_above={self.optimizer.restart_above} acts after a skipped step, and no step is: "
                "set stability.on_spike=skip or stability.on_nonfinite=skip"
            )
        if max(self.train.warmup_lengths, default=0) >= self.data.length:
            raise ConfigError(
                f"train.warmup_lengths={self.train.warmup_lengths} must be shorter than data.length={self.data.length}"
            )

    @property
    def total_steps(self) -> int:
        """The step at which the run ends."""
        return self.train.steps + self.train.extend

    @property
    def search(self) -> Search | None:
        """The search of initial scales that the run begins with."""
        return build_method(self.init_search, SEARCHES)

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


def check(config: Config) -> None:
    """Raises a ConfigError where keys contradict each other, so that a run would not be what it is called.

    A run that was made before a pair was refused is read and replayed all the same: only new configs are checked.
    """
    options = config.optimizer
    kernel = config.model.attention
    if kernel in ("cudnn", "splash") and reads_logits(build_method(options.projection, PROJECTIONS).needs):
        raise ConfigError(
            f"model.attention={kernel} has no logits for optimizer.projection.method={options.projection.method} to "
            "read; auto and xla do"
        )
    methods = compose(config.reparam, METHODS)
    if config.search and not all(method.scales for method in methods):
        raise ConfigError(
            f"init_search.method={config.init_search.method} would change nothing: with these options "
            f"reparam.method={config.reparam.method} begins with scales of its own; take reparam.method=identity or "
            "wesar, or gate=norm where it has a gate"
        )
    if config.search and config.train.batch_size % config.search.parts:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} is not divisible by the {config.search.parts} parts that "
            f"init_search.method={config.init_search.method} takes it in"
        )
    if any(method.fixed_gates for method in methods):
        fixed = f"reparam.method={config.reparam.method} keeps its gates fixed"
        if options.decays("gate"):
            raise ConfigError(f"{fixed}, and optimizer.decay_factors would shrink them; leave gate out of it")
        if options.eps == 0:
            raise ConfigError(
                f"{fixed}, so that their gradient is zero, which optimizer.rule.{options.rule.method}.eps=0 divides by "
                "zero; take an eps above 0"
            )
    if config.train.extend and optimize.last_rate(options) == 0:
        raise ConfigError(
            f"train.extend={config.train.extend} would train at a rate of 0, where optimizer.schedule.method="
            f"{options.schedule.method} ends; a longer run needs another schedule or floor from its start"
        )


# What may differ when a run is continued: where and how it runs and what is looked at, not what is computed (but for
# rounding); and what is done about the next spike, for a run that a spike has stopped.
NOT_TRAINING = (
    "stability.",
    "mesh.",
    "hosts.",
    "eval.",
    "checkpoint.",
    "log.",
    "train.extend",
    "train.accumulation",
    "train.loss_chunk",
    "model.remat",
    "model.attention",
    "data.cache_dir",
    "data.workers",
)


def training_keys(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config without keys that don't change the training, such as options of methods that aren't chosen."""
    idle = unchosen(flat)
    return {key: value for key, value in flat.items() if key not in idle and not key.startswith(NOT_TRAINING)}


def default_config() -> ConfigDict:
    """The overridable defaults, from which the files in configs/ start."""
    return to_config_dict(Config())


def resolve(values: ConfigDict) -> Config:
    """Reads an overridden ConfigDict, once; raises ConfigError at what doesn't fit or contradicts itself."""
    config = from_config_dict(Config, values)
    check(config)
    return config
