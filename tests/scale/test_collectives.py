"""What devices send each other in a step: every gradient once, in float32, whatever the compute dtype."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxstab.model.config import ModelConfig
from jaxstab.scale import MeshConfig
from jaxstab.scale.collectives import collectives
from jaxstab.table import count, rows
from jaxstab.train.config import Config
from jaxstab.train.program import build
from jaxstab.train.step_io import hypers

BASE = Config()
MICRO_BATCHES, CHUNKS = 2, 4
MODEL = ModelConfig(16, 2, heads=4, vocabulary=64, max_length=16, dtype="bfloat16", remat="none")
LM_HEAD = 4 * 16 * 64  # bytes


@functools.cache
def step_of(method="identity", **mesh):
    """The program, and its collectives, of a bf16 step in micro-batches and chunks of the loss."""
    program = build(
        dataclasses.replace(
            BASE,
            model=MODEL,
            reparam=dataclasses.replace(BASE.reparam, method=method),
            mesh=MeshConfig(**mesh),
            data=dataclasses.replace(BASE.data, length=16),
            train=dataclasses.replace(
                BASE.train, batch_size=16, accumulation=MICRO_BATCHES, loss_chunk=16 // CHUNKS, steps=10
            ),
            optimizer=dataclasses.replace(BASE.optimizer, warmup=2),
            stability=dataclasses.replace(BASE.stability, measure="off"),
        )
    )
    tokens = jax.ShapeDtypeStruct((16, 17), np.int32)
    return program, collectives(program.step.lower(program.abstract_state, tokens, hypers(program)).compile().as_text())


def test_replicas_add_their_gradients_up_once_a_step():
    program, sent = step_of(replica=8)
    parameters = 4 * count(program.setup.stored_table)
    assert sent.pop("all-reduce u32") == {"count": 1, "bytes": 4, "sent": 7}  # the digest of the batch
    assert list(sent) == ["all-reduce f32"]
    assert parameters <= sent["all-reduce f32"]["bytes"] <= parameters + 1000, sent


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_sums_over_devices_are_float32_under_bf16(mesh):
    _, sent = step_of(**mesh)
    sums = [kind for kind in sent if kind.startswith(("all-reduce", "reduce-scatter"))]
    assert sums and all(kind.endswith(("f32", "s32", "u32", "pred")) for kind in sums), sent


def test_the_gradient_of_lm_head_is_summed_over_devices_once_a_micro_batch_and_not_once_a_chunk():
    program, sent = step_of(fsdp=8)
    parameters = 4 * count(program.setup.stored_table)
    summed = sent["all-reduce f32"]["bytes"] + sent.get("reduce-scatter f32", {"bytes": 0})["bytes"]
    assert summed < MICRO_BATCHES * parameters + CHUNKS * LM_HEAD, sent


@pytest.mark.parametrize(("method", "vectors"), [("wesar", 0), ("weight_norm", 1), ("sigma_reparam", 2)])
def test_a_method_works_on_its_own_part_and_sends_vectors_alone(method, vectors):
    """Nothing of a matrix's size more is sent than without it: a scalar for each matrix, or vectors of its sides.

    Weights are gathered once they are effective. A unit's norm is summed over devices, forward and in its gradient, and
    a power iteration's two products likewise, on each side of a matrix.
    """
    program, sent = step_of(method, fsdp=8)
    _, without = step_of(fsdp=8)
    table = [row for row in rows(program.setup.table) if row.is_matrix]
    scalars = sum(max(1, row.layers) for row in table)
    sides = sum(max(1, row.layers) * (row.fan_in + row.fan_out) for row in table)
    gathered, before = ({k: v["bytes"] for k, v in each.items() if "gather" in k} for each in (sent, without))
    more = sum(total["sent"] for total in sent.values()) - sum(total["sent"] for total in without.values())
    assert sum(gathered.values()) - sum(before.values()) <= 4 * vectors * sides
    assert 0 < more <= 2 * 4 * (4 * scalars + 2 * vectors * sides), (more, scalars, sides)
    assert more < 4 * count(program.setup.table)


def test_collectives_in_loops_count_as_often_as_these_turn():
    text = """HloModule m, num_partitions=2
%body (a: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} all-reduce(%a), to_apply=%add
}
%cond (a: f32[4]) -> pred[] {
}
%add (a: f32[], b: f32[]) -> f32[] {
}
ENTRY %main (x: f32[4]) -> f32[4] {
  %g = ((bf16[1,3]{1,0}, bf16[1]{0}), (bf16[2,3]{1,0}, bf16[2]{0})) all-gather-start(%x, %y), dimensions={0}
  %w = f32[4]{0} while(%x), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""
    assert collectives(text) == {
        "all-gather bf16": {"count": 1, "bytes": 2 * (6 + 2), "sent": 2 * (3 + 1)},
        "all-reduce f32": {"count": 3, "bytes": 3 * 16, "sent": 3 * 16},
    }


def test_a_tpu_s_loops_gathers_and_scatters_are_counted_as_they_run():
    """Its text tells no counts of loops, goes on with a gather in several fusions, and scatters in fusions of sums."""
    text = """HloModule m, num_partitions=4
%body (p: (u32[], f32[8])) -> (u32[], f32[8]) {
  %two = u32[]{:T(128)} constant(2)
  %i = u32[] get-tuple-element(%p), index=0
  %next = u32[]{:T(128)} add(%i, %two), metadata={}
  %s = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1}}
  ROOT %t = (u32[], f32[8]) tuple(%next, /*index=1*/%x)
}
%cond (p: (u32[], f32[8])) -> pred[] {
  %ten = u32[]{:T(128)} constant(10)
  %j = u32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%j, %ten), direction=LT, metadata={}
}
%all-reduce-scatter (x: f32[8]) -> f32[4] {
  %r = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
}
%fusion.1 (x: bf16[2]) -> bf16[8] {
  %g.1 = bf16[8]{0} all-gather(%x), channel_id=2, replica_groups=mesh['a'=4,'b'=1] {'a'}, dimensions={0}
}
%fusion.2 (x: bf16[2]) -> bf16[8] {
  %g.2 = bf16[8]{0} all-gather(%x), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}
}
%fused_computation.3 (x: bf16[2]) -> bf16[8] {
  %g.3 = bf16[8]{0} all-gather(%x), channel_id=3, replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}
}
%async_collective_fusion.4 (x: bf16[2]) -> bf16[8] {
  %g.4 = bf16[8]{0} all-gather(%x), channel_id=3, replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}
}
%fused_computation.5 (x: bf16[2]) -> bf16[8] {
  %g.5 = bf16[8]{0} all-gather(%x), channel_id=3, replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}
}
%add (a: f32[], b: f32[]) -> f32[] {
}
ENTRY %main (x: f32[4]) -> f32[4] {
  %d = bf16[8] fusion(%x), kind=kCustom, calls=%fused_computation.3
  %e = bf16[8] fusion(%d), kind=kCustom, calls=%async_collective_fusion.4
  %f = bf16[8] fusion(%e), kind=kCustom, calls=%fused_computation.5
  %a = f32[4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  %b = bf16[8] fusion(%x), kind=kCustom, calls=%fusion.1
  %c = bf16[8] fusion(%b), kind=kCustom, calls=%fusion.2
  %w = (u32[], f32[8]) while(%x), condition=%cond, body=%body
}
"""
    assert collectives(text) == {
        "all-gather bf16": {"count": 2, "bytes": 16 + 16, "sent": 12 + 8},  # among four, and among two
        "collective-permute f32": {"count": 5, "bytes": 5 * 32, "sent": 5 * 32},
        "reduce-scatter f32": {"count": 1, "bytes": 16, "sent": 16},
    }
