"""What `stability.measure` writes, and that measuring changes nothing."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks import foretell
from jaxstab.logging import read_measurements
from jaxstab.stability.config import INSTRUMENTS

LIGHT = (
    "update_ratio update_ratio_effective norm norm_effective grad_norm grad_norm_effective gate update_rms "
    "grad_rms_over_eps nonfinite_fraction"
)
FULL = (
    "gradient_variance/q_proj gradient_entry_variance/q_proj spectral_norm/q_proj stable_rank/q_proj "
    "shortcut_std/attention shortcut_std/mlp attention_entropy/0 attention_entropy/1 max_attention_logit/0 dead_units "
    "max_activation gate_log_ratio jacobian/attention jacobian/mlp jacobian_bound/attention jacobian_bound/mlp"
)
SCALARS = "gradient_noise_scale shortcut_std/embedding max_logit spectral_norm/lm_head gradient_variance/embed_tokens"


def test_light_measurements_of_every_step(tiny, unbroken):
    measured = read_measurements(unbroken)
    for name in LIGHT.split():
        steps, values = measured[f"stability/{name}/down_proj"]
        assert steps.tolist() == list(range(1, 9)) and values.shape == (8, 2)
        assert all(f"stability/{name}/lm_head" in line for line in tiny.steps(unbroken))
    last = tiny.steps(unbroken)[-1]
    assert {f"stability/tev_{kind}/{role}" for kind in ("mean", "std") for role in ("embed_tokens", "lm_head")} <= {
        *last
    }
    assert last["train/update_norm"] > 0 and last["train/halted"] == last["train/skipped"] == 0


def test_tensorboard_has_the_config_every_layer_and_the_end(unbroken):
    events = EventAccumulator(str(unbroken / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    (config,) = events.Tensors("config/text_summary")
    assert b"model.layers = 2\n" in config.tensor_proto.string_val[0]
    for tag in ("Overview/loss", "Overview/spikes", "norm/q_proj/layer_0", "norm/q_proj/layer_1", "norm/lm_head"):
        assert [event.step for event in events.Scalars(tag)] == [1, 5, 8], tag
    assert {"update_ratio/heat_map", "grad_norm_effective/heat_map"} <= {*events.Tags()["images"]}
    assert "_hparams_/session_end_info" in events.PluginTagToContent("hparams")


@pytest.mark.slow
def test_full_measurements_at_their_cadence_change_nothing(tiny, unbroken, tmp_path):
    full = "--config.stability.measure=full", "--config.stability.measure_every=3"
    instruments = f"--config.stability.instruments={INSTRUMENTS!r}"
    assert tiny.run(tmp_path / "run", *full, instruments) == 0
    tiny.assert_same_arrays(tmp_path / "run", unbroken)
    measured = read_measurements(tmp_path / "run")
    for name in FULL.split():
        steps, values = measured[f"stability/{name}"]
        assert steps.tolist() == [1, 3, 6] and values.shape == (3, 2) and np.isfinite(values).all(), name
    for name in SCALARS.split():
        at = [line["step"] for line in tiny.steps(tmp_path / "run") if f"stability/{name}" in line]
        assert at == [1, 3, 6], name
    signals = foretell.read(tmp_path / "run").signals
    assert not [name for name, values in signals.items() if not np.isfinite(values).all()]
    counts, edges = (measured[f"stability/tev_histogram{part}/embed_tokens"][1] for part in ("", "_edges"))
    assert edges.shape[1] == counts.shape[1] + 1 and counts[0].sum() == 257


def test_off_leaves_loss_and_norms(tiny, unbroken, tmp_path):
    assert tiny.run(tmp_path / "run", "--config.stability.measure=off") == 0
    found, expected = tiny.arrays(tmp_path / "run"), tiny.arrays(unbroken)
    for path, array in expected.items():  # another program, that may round in another order
        np.testing.assert_allclose(found[path], array, rtol=1e-3, atol=1e-5, err_msg=path)
    assert not read_measurements(tmp_path / "run")
    assert {"train/loss", "train/grad_norm", "train/update_norm"} <= {*tiny.steps(tmp_path / "run")[-1]}
