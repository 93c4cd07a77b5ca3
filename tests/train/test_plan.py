"""A plan's figures are those of the compiled step, and of the state that a device then holds."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from jaxstab.commands.plan import SUMS, page
from jaxstab.config import ConfigError
from jaxstab.model.flops import flops_per_token
from jaxstab.scale import MeshConfig
from jaxstab.scale.chips import read_slice
from jaxstab.scale.collectives import collectives
from jaxstab.train import estimate, plan
from jaxstab.train.config import default_config, resolve
from jaxstab.train.program import build
from main import main

EIGHT = read_slice("h100:8")


def configured(method="wesar", **model):
    values = default_config()
    values.model.update({"width": 32, "layers": 2, "heads": 4, "vocabulary": 64, "max_length": 16, **model})
    values.data.length = 16
    values.train.update({"batch_size": 16, "steps": 1000, "loss_chunk": 8})
    values.reparam.method, values.stability.measure = method, "off"
    values.mesh.update({"fsdp": 4, "tensor": 2})
    return resolve(values)


@pytest.fixture(scope="module")
def planned():
    config = configured()
    return plan.plan(config, EIGHT, *plan.devices_of(EIGHT))


def test_memory_is_the_state_that_a_device_holds_and_the_compiler_s_temporaries(planned):
    program = build(planned.config)
    state = program.init(0)

    def held(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    assert planned.memory["parameters"] == held(state.raw)
    assert planned.memory["optimizer"] == held((state.optimizer, state.clip))
    sizes = plan.lowered(program).compile().memory_analysis()
    new = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    temporaries = planned.memory["activations"] + planned.memory["temporaries"]
    assert temporaries == sizes.temp_size_in_bytes + new
    assert planned.needed >= sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    assert planned.fits and planned.capacity == 80e9


def test_collectives_are_those_of_the_compiled_step(planned):
    sent = collectives(plan.lowered(build(planned.config)).compile().as_text())
    assert sent == planned.sent and sum(total["sent"] for total in sent.values()) > 0


def test_weights_that_come_as_sums_are_told_of(planned):
    assert not planned.sums_weights and SUMS not in page(planned)
    weights = planned.by_formula["weights"]
    assert weights > 0 and f"({sum(planned.by_formula.values()) / 2**30:.3f} by formula)" in page(planned)
    sums = {"all-reduce bf16": {"count": 6, "bytes": weights, "sent": 2 * weights}}
    assert SUMS in page(dataclasses.replace(planned, sent=sums))
    assert SUMS not in page(dataclasses.replace(planned, sent={}))
    permuted = {"collective-permute bf16": {"count": 6, "bytes": weights, "sent": weights}}
    assert SUMS not in page(dataclasses.replace(planned, sent=sums | permuted))


def test_time_and_cost_follow_from_the_peaks(planned):
    per_token = flops_per_token(build(planned.config).setup.table, 16)
    assert planned.flops["full"] == 16 * 16 * per_token["full"]
    assert planned.flops["causal"] < planned.flops["executed"] < 1.5 * planned.flops["causal"]
    assert planned.seconds.compute == pytest.approx(planned.flops["executed"] / (8 * 989.4e12))
    sent = sum(total["sent"] for total in planned.sent.values())
    assert planned.seconds.interconnect == pytest.approx(sent / 450e9)
    assert planned.mfu == pytest.approx(planned.flops["full"] / (planned.seconds.least * 8 * 989.4e12))
    assert planned.chip_hours == pytest.approx(1000 * planned.seconds.least / 3600 * 8)


@pytest.mark.parametrize(("method", "sizes"), [("wesar", (1, 8, 1, 1)), ("sigma_reparam", (2, 2, 2, 1))])
def test_the_state_by_formula_is_that_which_a_mesh_splits(method, sizes):
    config = dataclasses.replace(configured(method), mesh=MeshConfig(*sizes))
    program = build(config)
    by_formula = estimate.memory(config, program.setup.mesh.shape, estimate.footprint(program))
    exact = estimate.state_bytes(program)
    assert by_formula["parameters"] == exact["parameters"]
    assert by_formula["optimizer"] == pytest.approx(exact["optimizer"], rel=0.01)


@pytest.mark.slow
def test_activations_by_formula_grow_as_the_policy_keeps_more():
    kept = {}
    for remat in plan.REMATS:
        config = configured(remat=remat, dtype="bfloat16")
        kept[remat] = estimate.footprint(build(config)).kept
    inputs = 2 * 2 * 16 * 32  # of two blocks, bfloat16
    assert inputs < kept["full"] < kept["dots"] < kept["none"]


def test_the_traffic_of_replicas_by_formula_is_that_of_the_compiled_step():
    """A ring's all-reduce of all gradients, but for what CPUs add: scalars of the loss and norms."""
    config = dataclasses.replace(configured(), mesh=MeshConfig(replica=8))
    compiled = plan.plan(config, EIGHT, *plan.devices_of(EIGHT))
    sizes = {"replica": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    by_formula = estimate.sent(config, sizes, build(config).setup.table)
    assert {name for name, size in by_formula.items() if size} == {"gradients"}
    assert sum(total["sent"] for total in compiled.sent.values()) == pytest.approx(by_formula["gradients"], rel=0.02)


@pytest.mark.slow
def test_a_search_ranks_what_fits():
    shown = []

    def all_of(best):
        shown.append(len(best))
        return best

    plans = plan.search(configured(), EIGHT, *plan.devices_of(EIGHT), None, 2, all_of)
    assert shown == [2] and 1 <= len(plans) <= 2
    assert all(each.fits and each.compiler == "cpu" for each in plans)
    least = [each.seconds.least for each in plans]
    assert least == sorted(least)


def test_candidates_are_the_same_training_and_split_it_evenly():
    config = configured()
    candidates = list(plan.candidates(config, EIGHT))
    assert len({str(each) for each in candidates}) == len(candidates) > 50
    for each in candidates:
        assert each.mesh.replica * each.mesh.fsdp * each.mesh.tensor * each.mesh.sequence == 8
        assert 4 % each.mesh.tensor == 0 and each.train.batch_size == 16
        each.check_devices(each.mesh.replica * each.mesh.fsdp)


def test_nothing_fits_a_chip_without_memory(monkeypatch):
    small = dataclasses.replace(EIGHT.chip, memory=1e4)
    monkeypatch.setitem(plan.scale.chips.CHIPS, "h100", small)
    assert plan.search(configured(), EIGHT, *plan.devices_of(EIGHT), None, 2, list) == []


def refuse(monkeypatch, words):
    def fail(self, *options):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {words}")

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    slice_ = read_slice("v5e:2x4")
    return plan.plan(configured(), slice_, plan.virtual_devices(8), "tpu")


def test_a_tpu_without_room_is_told_with_what_it_would_need(monkeypatch):
    """The words are libtpu's, which keeps 0.25 GiB of a chip for itself."""
    planned = refuse(monkeypatch, "Ran out of memory in memory space hbm. Used 15.80G of 15.75G hbm.")
    assert planned.needed == 15.8 * 2**30 < planned.capacity and not planned.fits
    assert planned.compiler == "tpu, out of memory" and "of 16.00, 99%: the compiler refuses it" in page(planned)
    besides = "Ran out of memory on HBM, the total memory required for HLO temporaries (24.00G) exceeds available HBM"
    planned = refuse(monkeypatch, besides)
    state = planned.memory["parameters"] + planned.memory["optimizer"] + planned.memory["other state"]
    assert planned.needed == pytest.approx(state + 24 * 2**30) and not planned.fits


def test_what_else_a_compiler_refuses_is_told_in_one_line(monkeypatch):
    with pytest.raises(
        ConfigError, match="the compiler refuses the step for v5e:2x4: RESOURCE_EXHAUSTED: no scoped vmem"
    ):
        refuse(monkeypatch, "no scoped\n\nvmem")


def test_a_chip_is_as_many_devices_of_libtpu_s_as_of_jax(monkeypatch):
    """libtpu tells of the two cores of a v4 as devices, unless it is asked to join them."""
    asked = {}

    def described(platform, topology_name, chip_config_name):
        asked[topology_name] = chip_config_name
        return SimpleNamespace(devices=["device"] * 16)

    monkeypatch.setattr(topologies, "get_topology_desc", described)
    monkeypatch.setattr(plan, "has_libtpu", lambda: True)
    for name in ("v4:2x2x2", "v5p:2x2x2", "tpu7x:2x2x2"):
        slice_ = read_slice(name)
        assert plan.devices_of(slice_) == (["device"] * slice_.devices, "tpu")
    assert asked == {"v4:2x2x2": "megacore", "v5p:2x2x2": "default", "tpu7x:2x2x2": "default"}


def test_a_part_of_a_host_is_compiled_for_as_one():
    wholes = {"v5e:1x1": "v5e:2x2", "v6e:2x4": "v6e:2x4", "v5p:1x1x1": "v5p:2x2x1", "v5p:2x2x4": "v5p:2x2x4"}
    assert {part: str(plan.in_hosts(read_slice(part))) for part in wholes} == wholes


def test_an_axis_of_minus_one_takes_what_the_slice_has_left():
    config = dataclasses.replace(configured(), mesh=MeshConfig(fsdp=-1, tensor=2))
    assert plan.on_mesh_of(config, read_slice("v5p:4x4x4")).mesh == MeshConfig(fsdp=32, tensor=2)
    assert plan.on_mesh_of(config, read_slice("tpu7x:2x2x1")).mesh == MeshConfig(fsdp=4, tensor=2)
    with pytest.raises(ConfigError, match=r"mesh=\(1, 4, 2, 1\) is 8 devices, and v5p:4x4x4 has 64"):
        plan.on_mesh_of(configured(), read_slice("v5p:4x4x4"))


@pytest.mark.slow
def test_the_command_prints_a_plan_and_writes_it(tmp_path, capsys):
    results = tmp_path / "plan.json"
    line = f"main.py plan --config=configs/quickstart.py --topology=a100:8 --results={results}"
    line += " --config.model.vocabulary=64 --config.model.layers=1 --config.mesh.fsdp=-1 --config.data.tokenizer=bytes"
    line += " --config.train.batch_size=8 --config.train.accumulation=1"
    assert main(line.split()) == 0
    printed = capsys.readouterr().out
    assert "8 virtual CPU devices instead" in printed and "of 74.51" in printed and "all-gather" in printed
    (plan_,) = json.loads(results.read_text())["plans"]
    assert plan_["mesh"] == {"replica": 1, "fsdp": 8, "tensor": 1, "sequence": 1}
    assert np.isclose(sum(plan_["memory"].values()), plan_["needed"])


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5p:4x4", "--topology=v5p:4x4 must be v5p with 3 size(s), such as v5p:4x4x4"),
        ("v9:2x2", "unknown chip in --topology=v9:2x2"),
        ("h100", "--topology=h100 must be h100 with 1 size(s), such as h100:8"),
        ("v5e:32x32", "--topology=v5e:32x32 has 1024 chips, and a pod of v5e has 256"),
    ],
)
def test_what_is_no_slice_is_refused_in_one_line(topology, message, capsys):
    assert main(["main.py", "plan", "--config=configs/quickstart.py", f"--topology={topology}"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
