"""What a run holds on the device doesn't grow with its steps, evaluations, measurements and checkpoints."""

import jax
import jax.numpy as jnp

from jaxstab.train import incidents
from jaxstab.train.loop import Trainer


def test_arrays_on_the_device_are_as_many_after_many_steps_as_after_few(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(incidents, "HISTORY", 8)  # steps of which a run remembers the measurements
    held, report = [], Trainer._report

    def watched(self, dispatched, state):
        report(self, dispatched, state)
        # Batches are left out: how many are ready ahead of their step depends on the machine.
        arrays = (array for array in jax.live_arrays() if array.dtype == jnp.float32)
        held.append((dispatched.step, sum(array.nbytes for array in arrays)))

    monkeypatch.setattr(Trainer, "_report", watched)
    full = "--config.stability.measure=full", "--config.stability.measure_every=5"
    assert tiny.run(tmp_path / "run", "--config.train.extend=52", *full) == 0
    early, late = ([size for step, size in held if step in steps] for steps in (range(21, 41), range(41, 61)))
    assert len(late) == 20 and max(late) <= max(early)
