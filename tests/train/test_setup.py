"""What a run is made of: the attention kernel by where it runs."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from jaxstab.config import ConfigError
from jaxstab.model.config import ModelConfig
from jaxstab.train import messages
from jaxstab.train.config import default_config, resolve
from jaxstab.train.program import build
from jaxstab.train.setup import attention_kernel, set_up

BF16 = ModelConfig(dtype="bfloat16")


def mesh_of(platform="gpu", capability="9.0", sequence=1, tensor=1):
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    return SimpleNamespace(devices=np.array([[device]]), shape={"sequence": sequence, "tensor": tensor})


CPU = SimpleNamespace(devices=np.array([SimpleNamespace(platform="cpu")]), shape={"sequence": 1, "tensor": 1})


@pytest.mark.parametrize(
    ("config", "mesh", "kernel"),
    [
        (BF16, mesh_of(), "cudnn"),
        (BF16, mesh_of(capability="8.0"), "cudnn"),
        (BF16, mesh_of(capability="10.3"), "cudnn"),
        (BF16, CPU, "chunked"),
        (BF16, mesh_of("tpu", ""), "splash"),
        (dataclasses.replace(BF16, mask_documents=True), mesh_of("tpu", ""), "splash"),
        (BF16, mesh_of("tpu", "", tensor=4), "splash"),
        (dataclasses.replace(BF16, kv_heads=2), mesh_of("tpu", "", tensor=4), "chunked"),
        (BF16, mesh_of("tpu", "", sequence=2), "chunked"),
        (ModelConfig(), mesh_of("tpu", ""), "chunked"),
        (dataclasses.replace(BF16, attention_softcap=50.0), mesh_of("tpu", ""), "chunked"),
        (dataclasses.replace(BF16, attention="xla"), mesh_of("tpu", ""), "xla"),
        (ModelConfig(attention="splash"), mesh_of("tpu", ""), "splash"),
        (BF16, mesh_of(capability="gfx90a"), "chunked"),  # AMD's
        (BF16, mesh_of(capability="7.5"), "chunked"),
        (BF16, mesh_of(sequence=2), "chunked"),
        (BF16, mesh_of(tensor=4), "cudnn"),
        (dataclasses.replace(BF16, kv_heads=2), mesh_of(tensor=4), "chunked"),
        (ModelConfig(), mesh_of(), "chunked"),
        (dataclasses.replace(BF16, attention_softcap=50.0), mesh_of(), "chunked"),
        (dataclasses.replace(BF16, mask_documents=True), mesh_of(), "chunked"),
        (dataclasses.replace(BF16, width=72), mesh_of(), "chunked"),
        (dataclasses.replace(BF16, width=256, heads=1), mesh_of(), "cudnn"),
        (dataclasses.replace(BF16, width=256, heads=1), mesh_of(capability="8.6"), "chunked"),
        (dataclasses.replace(BF16, attention="xla"), mesh_of(), "xla"),
        (dataclasses.replace(BF16, attention="cudnn"), mesh_of(capability="8.6"), "cudnn"),
    ],
)
def test_auto_takes_the_fused_kernel_where_it_does_all_that_is_asked(config, mesh, kernel):
    assert attention_kernel(config, mesh, needs_logits=False) == kernel


@pytest.mark.parametrize("mesh", [mesh_of(), mesh_of("tpu", "")])
def test_auto_stays_where_logits_are_read(mesh):
    assert attention_kernel(BF16, mesh, needs_logits=True) == "chunked"


@pytest.mark.parametrize("mesh", [CPU, mesh_of("tpu", "")])
def test_cudnn_elsewhere_than_on_a_gpu_is_refused(mesh):
    with pytest.raises(ConfigError, match=r"needs an NVIDIA GPU, not a (cpu|tpu); auto runs everywhere"):
        attention_kernel(dataclasses.replace(BF16, attention="cudnn"), mesh, needs_logits=False)


@pytest.mark.parametrize("mesh", [CPU, mesh_of()])
def test_splash_elsewhere_than_on_a_tpu_is_refused(mesh):
    with pytest.raises(
        ConfigError, match=r"model\.attention=splash needs a TPU, not a (cpu|gpu); auto runs everywhere"
    ):
        attention_kernel(dataclasses.replace(BF16, attention="splash"), mesh, needs_logits=False)


def test_the_kernel_is_the_model_s_and_the_config_stays_what_was_asked():
    values = default_config()
    values.model.update(width=16, layers=1, heads=2, vocabulary=17)
    setup = set_up(resolve(values))
    assert (setup.model.config.attention, setup.config.model.attention) == ("chunked", "auto")


def test_a_run_says_in_its_first_line_that_it_takes_the_fused_kernel(tmp_path):
    values = default_config()
    values.model.update(width=16, layers=1, heads=2, vocabulary=17)
    program = build(resolve(values))
    corpus, inputs = SimpleNamespace(train=SimpleNamespace(tokens=1000)), SimpleNamespace(lengths=(None,))
    assert "attention" not in messages.plan(program, corpus, inputs, tmp_path, 0)
    fused = dataclasses.replace(BF16, width=16, layers=1, heads=2, vocabulary=17, attention="cudnn")
    setup = dataclasses.replace(program.setup, model=program.setup.model.clone(config=fused))
    line = messages.plan(dataclasses.replace(program, setup=setup), corpus, inputs, tmp_path, 0)
    assert "cpu device with cuDNN's attention. Compiling" in line
    fused = dataclasses.replace(fused, attention="splash")
    setup = dataclasses.replace(program.setup, model=program.setup.model.clone(config=fused))
    line = messages.plan(dataclasses.replace(program, setup=setup), corpus, inputs, tmp_path, 0)
    assert "cpu device with splash attention. Compiling" in line
