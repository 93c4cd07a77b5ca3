"""Workdirs of runs that never ran: series as training leaves them, with a cause planted in them."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxstab.config import flatten, from_config_dict
from jaxstab.diagnose.history import stored_rows
from jaxstab.logging import LogConfig, RunLogger
from jaxstab.table import Row, rows
from jaxstab.train.checkpoint import CheckpointConfig, Checkpoints
from jaxstab.train.config import Config, default_config
from jaxstab.train.program import build
from jaxstab.train.setup import reparameterized

LAYERS, HEADS, VOCABULARY, WIDTH = 5, 4, 64, 32
STEPS, WARMUP, EVERY = 160, 10, 25


def config(**changes) -> Config:
    """The config of a small model; `model__qk_norm=True` changes a key."""
    values = default_config()
    given = dict(
        model__width=WIDTH, model__layers=LAYERS, model__heads=HEADS, model__vocabulary=VOCABULARY, model__max_length=32
    )
    given |= dict(data__length=32, optimizer__learning_rate=3e-3, init__method="he")
    given |= dict(optimizer__warmup=WARMUP, optimizer__schedule__method="constant")
    for key, value in (given | changes).items():
        *sections, name = key.split("__")
        section = values
        for each in sections:
            section = section[each]
        section[name] = value
    return from_config_dict(Config, values)


@functools.cache
def matrices(config: Config) -> dict[str, Row]:
    """Rows of the effective matrices, by role."""
    effective, _, _ = reparameterized(config)
    return {row.role: row for row in rows(effective) if row.is_matrix}


@dataclasses.dataclass
class Fake:
    """Series of a run: every matrix drifts by updates nearly orthogonal to it, the loss falls with noise.

    `scale(step, role, layer, factor)` multiplies a matrix before a step; `loss` and `grad` may be changed at will.
    """

    seed: int = 0
    rate: float = 0.004
    steps: int = STEPS
    changes: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        dice = self.dice = np.random.default_rng(self.seed)
        self.config = config(**self.changes)
        self.rows = matrices(self.config)
        t = np.arange(1, self.steps + 1)
        self.learning_rate = 3e-3 * np.minimum(t / WARMUP, 1)
        self.loss = 2.3 + 3.2 * np.exp(-t / 12) + 0.1 * dice.standard_normal(self.steps)
        self.grad = np.exp(0.2 * dice.standard_normal(self.steps) - t / 200)
        self.logits = 6 * np.exp(0.15 * dice.standard_normal((self.steps, LAYERS, HEADS)))
        self.factors = {role: np.ones((self.steps, row.layers or 1)) for role, row in self.rows.items()}
        self.nonfinite = {role: np.zeros((self.steps, row.layers or 1)) for role, row in self.rows.items()}

    def scale(self, step: int, role: str, layer: int, factor: float) -> Fake:
        self.factors[role][step - 1 :, layer] *= factor
        return self

    def series(self) -> dict[str, dict[str, np.ndarray]]:
        """{measurement: {role: [steps, layers]}}."""
        measured = {
            name: {} for name in ("norm", "norm_effective", "update_ratio", "update_ratio_effective", "grad_norm")
        }
        for role, row in self.rows.items():
            layers = row.layers or 1
            norms = np.empty((self.steps, layers))
            ratios = np.empty((self.steps, layers))
            noise = 0.02 * self.dice.standard_normal((self.steps, layers))
            norm = row.std * np.sqrt(row.fan_in * row.fan_out) * (1 + 0.003 * self.dice.standard_normal(layers))
            for i in range(self.steps):
                jump = self.factors[role][i] / (self.factors[role][i - 1] if i else 1)
                norm = norm * jump
                update = self.rate * self.learning_rate[i] / 3e-3 * norm / self.factors[role][i]
                norms[i], ratios[i] = norm, update / norm
                norm = np.sqrt(norm**2 + update**2 + 2 * norm * update * noise[i])
            measured["norm_effective"][role] = norms
            std = stored_rows(self.config)[role].std if role in stored_rows(self.config) else None
            measured["norm"][role] = norms * (np.asarray(std) / np.asarray(row.std) if std else 1.0)
            measured["update_ratio"][role] = measured["update_ratio_effective"][role] = ratios
            own = np.exp(0.2 * self.dice.standard_normal((self.steps, layers)))
            measured["grad_norm"][role] = 0.1 * self.grad[:, None] * own
        measured["nonfinite_fraction"] = self.nonfinite
        return measured

    def write(self, workdir: Path, *, measurements: bool = True, saved: bool = True) -> Path:
        """Writes the run with the project's own writers."""
        measured = self.series() if measurements else {}
        with RunLogger(
            workdir, LogConfig(tensorboard_every=0), None, 0, self.steps, Console(file=io.StringIO())
        ) as logger:
            for i in range(self.steps):
                step = i + 1
                scalars = {
                    "train/loss": self.loss[i],
                    "train/grad_norm": self.grad[i],
                    "train/learning_rate": self.learning_rate[i],
                    "train/finite": float(np.isfinite(self.loss[i])),
                }
                arrays = {}
                for name, by_role in measured.items():
                    for role, values in by_role.items():
                        if self.rows[role].stacked:
                            arrays[f"stability/{name}/{role}"] = values[i]
                        else:
                            scalars[f"stability/{name}/{role}"] = values[i, 0]
                if measured:
                    scalars["stability/tev_mean/embed_tokens"] = measured["norm"]["embed_tokens"][i, 0] / np.sqrt(
                        VOCABULARY * WIDTH
                    )
                if measured and step % EVERY == 0:
                    for head in range(HEADS):
                        arrays[f"stability/max_attention_logit/{head}"] = self.logits[i, :, head]
                        arrays[f"stability/attention_entropy/{head}"] = 3 - 0.01 * self.logits[i, :, head]
                    for branch in ("attention", "mlp"):
                        arrays[f"stability/shortcut_std/{branch}"] = 0.2 + 0.1 * np.arange(LAYERS)
                        arrays[f"stability/jacobian/{branch}"] = 1.5 - 0.1 * np.arange(LAYERS)
                        arrays[f"stability/jacobian_bound/{branch}"] = 4 - 0.1 * np.arange(LAYERS)
                    scalars["stability/shortcut_std/embedding"] = 0.18
                    arrays["stability/gradient_variance/up_proj"] = np.full(LAYERS, 1e-6 * step)
                    arrays["stability/tev_histogram/embed_tokens"] = np.array([1.0, 60.0, 3.0])
                    arrays["stability/tev_histogram_edges/embed_tokens"] = np.array([0.0, 0.1, 0.2, 0.3])
                logger.train(step, {name: float(value) for name, value in scalars.items()}, arrays)
        if saved:
            (workdir / "config.json").write_text(json.dumps({"config": flatten(self.config), "identity": {}}))
        return workdir


@pytest.fixture
def fake(tmp_path):
    """Makes a Fake and writes it: `fake(lambda run: run.scale(...), seed=1)` -> workdir."""

    def made(plant=lambda run: None, *, measurements=True, saved=True, **options) -> Path:
        run = Fake(**options)
        plant(run)
        return run.write(tmp_path / f"run{len(list(tmp_path.iterdir()))}", measurements=measurements, saved=saved)

    return made


@pytest.fixture
def saved_run(tmp_path):
    """A workdir with the checkpoint of a state that was never trained: `saved_run(reparam__method="wesar")`.

    Returns the workdir and the effective weights.
    """

    def made(**changes):
        chosen = config(**changes)
        program = build(chosen)
        state = program.init(3)
        weights = jax.device_get(program.merge(state))
        with Checkpoints(tmp_path / "saved" / "checkpoints", CheckpointConfig()) as checkpoints:
            checkpoints.save(1, state, {"config": flatten(chosen)}, force=True)
        return tmp_path / "saved", weights

    return made
