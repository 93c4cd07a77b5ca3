"""The training step compiles for TPUs, which needs libtpu and no TPU, and is what benchmarks/ahead.py says of it."""

import importlib.util
from pathlib import Path

import pytest
from jax.experimental import topologies

PATH = Path(__file__).parents[2] / "benchmarks" / "ahead.py"
TOY = dict(width=256, layers=2, heads=4, kv_heads=2, vocabulary=512, max_length=256, mask_documents=True)


@pytest.fixture(scope="module")
def ahead():
    spec = importlib.util.spec_from_file_location("ahead", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_splash_attention_takes_the_place_of_xla_s_logits(ahead):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, which compiles for TPUs, isn't installed")
    devices = list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)
    texts = [ahead.compiled(ahead.configured(name, 4, **TOY), devices, end=0).as_text() for name in ("xla", "splash")]
    of_xla, of_splash = map(ahead.kernels, texts)
    assert not of_xla
    assert of_splash == {
        "splash_mha_fwd_segmented_residuals": 2,  # the pass forward, and again in the pass backward
        "splash_mha_dq_segmented_no_residuals": 1,
        "splash_mha_dkv_segmented_no_residuals": 1,
    }
    of_xla, of_splash = (
        [kind for kind in ahead.products(text) if "f32 x" in kind or "x f32" in kind] for text in texts
    )
    assert of_xla and not of_splash  # products with the gradients of the logits, which are float32


HLO = """
%fused (p0: f32[8,4], p1: bf16[4,2]) -> f32[8,2] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = bf16[4,2]{1,0} parameter(1)
  ROOT %convolution.1 = f32[8,2]{1,0:T(8,128)} convolution(%p0, %p1), window={size=1}, \
metadata={op_name="jit(step)/transpose(jvp(hidden))/rematted_computation/mlp/up_proj/dot_general" stack_frame_id=3}
}
"""


def test_products_are_told_by_their_operands_and_by_what_they_are_of(ahead):
    assert ahead.products(HLO) == {"f32 x bf16 -> f32": {"mlp/up_proj (recomputed)": 1}}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_without_a_compiler_the_benchmark_says_so(ahead, monkeypatch, platform):
    def fail(**options):
        raise RuntimeError("no\nplugin")

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    with pytest.raises(SystemExit, match=rf"no compiler for \w+-1 here, .*\.\[{platform}\]` brings: no plugin"):
        ahead.main(platform)
