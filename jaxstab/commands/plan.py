"""main.py plan --config=... --topology=v5p:4x4x4"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console

from jaxstab.commands.base import Call, Command, Flag

if TYPE_CHECKING:
    from jaxstab.train.plan import Plan

COMPILED = 6  # of the plans of a search, those that are compiled
SUMS = "weights come as sums, which send twice what gathers do: libtpu gathers them where mesh.replica is 2 or more"
FLAGS = (
    Flag("topology", None, "The chips: v5p:4x4x4, v5e:16x16, h100:64; docs/plan.md has all."),
    Flag(
        "search", False, "Try meshes, rematerialization and micro-batches, and rank those that fit.", flags.DEFINE_bool
    ),
    Flag("results", None, "The JSON file that results are written to, besides the table."),
)


def _run(call: Call) -> None:
    from jaxstab import data
    from jaxstab.logging.console import say, shown
    from jaxstab.scale.chips import read_slice
    from jaxstab.train.plan import NO_LIBTPU, devices_of, on_mesh_of, plan, search
    from jaxstab.train.workdir import write_whole

    console = Console(highlight=False)
    slice_ = read_slice(call.required("topology", "v5p:4x4x4"))
    config, end = call.config(), None
    if config.model.vocabulary == 0 or config.model.mask_documents:
        tokenizer = data.load_tokenizer(config.data.tokenizer, config.data.end_token)
        config, end = config.with_vocabulary(tokenizer.vocabulary), tokenizer.end
    devices, compiler = devices_of(slice_)
    if compiler == "cpu":
        why = NO_LIBTPU if slice_.chip.is_tpu else "no compiler for GPUs that aren't here"
        say(console, f"Compiled for {len(devices)} virtual CPU devices instead: {why}.")
        say(console, "Temporaries and traffic are those of a CPU's program, float32 where a chip's is bfloat16.")
    if call["search"]:
        say(console, f"The best {COMPILED} by formula are compiled for {slice_}: minutes each for a large model.")
        plans = search(config, slice_, devices, compiler, end, COMPILED, shown(console, "compiled"))
        say(console, ranked(plans) if plans else f"Nothing fits {slice_}: take more chips, or ones with more memory.")
    else:
        say(console, f"Compiling the step for {slice_}: seconds for a small model, two minutes at 13B.")
        plans = [plan(on_mesh_of(config, slice_), slice_, devices, compiler, end)]
        say(console, page(plans[0]))
    if call["results"]:
        write_whole(Path(call["results"]), {"plans": [each.as_json() for each in plans]})


def page(plan: Plan) -> str:
    """All of a plan, in lines."""
    chip, seconds = plan.slice_.chip, plan.seconds
    gib = 2**30
    lines = [f"{plan.slice_}: {plan.slice_.chips} chips, {_mesh(plan)}", "", "memory of a device, GiB"]
    lines += [f"  {name:12}  {size / gib:8.2f}" for name, size in plan.memory.items()]
    share = plan.needed / plan.capacity
    verdict = "" if plan.fits else ": the compiler refuses it" if plan.refused else ": does not fit"
    lines += [f"  {'all':12}  {plan.needed / gib:8.2f} of {plan.capacity / gib:.2f}, {share:.0%}{verdict}"]
    by_formula = sum(plan.by_formula.values()) / gib
    lines += ["", f"collectives of a step, GiB that a device sends ({by_formula:.3f} by formula)"]
    lines += [
        f"  {kind:22}  {total['sent'] / gib:8.3f}" + (f"  in {total['count']:,}" if "count" in total else "")
        for kind, total in plan.sent.items()
    ]
    if plan.sums_weights:
        lines.append("  " + SUMS)
    lines += ["", "FLOPs of a step: " + ", ".join(f"{name} {value:.4g}" for name, value in plan.flops.items())]
    times = ", ".join(f"{name} {value:.3f}" for name, value in seconds._asdict().items())
    lines += [f"seconds by themselves: {times}", *_prediction(plan), f"peaks: {chip.source}"]
    return "\n".join(lines)


def _prediction(plan: Plan) -> list[str]:
    least, most = plan.seconds.least, plan.seconds.most
    steps = f"{plan.config.total_steps:,} steps of {plan.tokens:,} tokens"
    return [
        f"a step takes at least {least:.3f} s ({plan.seconds.bound}), and {most:.3f} s where nothing overlaps",
        f"at that least: MFU {plan.mfu:.1%} (full), {plan.tokens / least:,.0f} tokens/s, {plan.days:.2f} days and "
        f"{plan.chip_hours:,.0f} chip-hours for {steps}",
    ]


def _mesh(plan: Plan) -> str:
    train, mesh = plan.config.train, plan.config.mesh
    sizes = f"replica {mesh.replica}, fsdp {mesh.fsdp}, tensor {mesh.tensor}, sequence {mesh.sequence}"
    return f"{sizes}; remat {plan.config.model.remat}; {train.accumulation} micro-batches"


def ranked(plans: list[Plan]) -> str:
    """A line for each plan, the fastest first."""
    lines = ["   least s    most s    MFU  GiB of a device"]
    for plan in plans:
        times = f"{plan.seconds.least:10.3f}{plan.seconds.most:10.3f}{plan.mfu:7.1%}"
        lines.append(f"{times}  {plan.needed / 2**30:8.2f} of {plan.capacity / 2**30:.2f}  {_mesh(plan)}")
    return "\n".join(lines)


COMMAND = Command(
    "compiles the step for chips that aren't here: memory, traffic, and the time and chips that the run takes",
    _run,
    FLAGS,
)
