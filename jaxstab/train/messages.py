"""What a run says of itself before its first step and after its last."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import jax

from jaxstab import data
from jaxstab.optimize import last_rate
from jaxstab.stability import FORETELLS
from jaxstab.table import count
from jaxstab.train.program import Program
from jaxstab.train.step_io import StepInputs

HORIZON = 50  # steps in which one warning of a spike is enough


def foretold(step: int) -> str:
    """That a spike is foretold (`stability/foretold`), and how often that is right (docs/results/foretell.md)."""
    return (
        f"step {step}: a spike may be near: the norms of the gradient and of the update both lie more than "
        f"{FORETELLS:g} standard deviations above their last 128. In docs/results/foretell.md this came before 19 of "
        "27 events, by 6 steps in the median, and in 6% of stretches of 50 steps that no event followed"
    )


def plan(program: Program, corpus: data.Prepared, inputs: StepInputs, workdir: Path, start: int) -> str:
    """What the run is going to do."""
    config, devices = program.setup.config, program.setup.mesh.size
    model, total = config.model, config.total_steps
    tokens = config.train.batch_size * config.data.length
    first, *changes = inputs.lengths
    later = "".join(f", {change.length} after {change.first_update}" for change in changes)
    kernel = {"cudnn": " with cuDNN's attention", "splash": " with splash attention"}.get(
        program.setup.model.config.attention, ""
    )
    cut = f" (records cut to {first.length}{later} steps)" if changes else ""
    search = f" scaled by {config.init_search.method}" if config.search else ""
    return (
        f"{'Continuing' if start else 'Training'} in {workdir}: {count(program.setup.stored_table):,} parameters "
        f"({model.layers} blocks of width {model.width}, {config.reparam.method} over {config.init.method}{search}), "
        f"steps {start} to {total} of {tokens:,} tokens{cut} ({total * tokens / max(1, corpus.train.tokens):.2g} "
        f"epochs of {corpus.train.tokens:,} tokens), on {devices} {jax.devices()[0].platform} "
        f"device{'s' * (devices > 1)}{kernel}. Compiling ..."
    )


def how_to_go_on(program: Program, workdir: Path, steps: int) -> str:
    """What may be done with a complete run; it can train on only where the schedule's last rate isn't 0."""
    beside_python = os.path.relpath(Path(sys.executable).with_name("tensorboard"))
    tensorboard = "tensorboard" if shutil.which("tensorboard") else beside_python
    lines = [f"Curves:      {tensorboard} --logdir {workdir}"]
    if last_rate(program.setup.config.optimizer):
        extend = f"--config.train.extend={max(1, steps // 2)}"
        lines.append(f"Train on:    the same command with {extend}, at the schedule's last rate")
    return "\n".join([*lines, "Start anew:  the same command with another --workdir"])
