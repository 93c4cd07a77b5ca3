"""What devices send each other, read off a compiled program's text."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Sequence

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
INSTRUCTION = re.compile(rf"\s*(?:ROOT )?%?(\S+) = (.*?) ({'|'.join(KINDS)})(-start)?\(")


def collectives(text: str) -> dict[str, dict[str, int]]:
    """The collectives of one call of a partitioned program.

    Args:
      text: `compiled.as_text()`.

    Returns:
      {"all-reduce f32": {"count": how many, "bytes": of their results on one device, "sent": bytes that a device sends
      for them}}. One that stands in a loop counts as often as the loop turns, where the text tells it.
    """
    bodies, turns = _computations(text), _turns(text)
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    devices = int(partitions[1]) if partitions else 1
    totals: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    channels: set[tuple[str, ...]] = set()
    for name, lines in sorted(bodies.items(), key=lambda body: _is_fusion(body[0])):
        # A TPU's reduce-scatter is a fusion of an all-reduce and a slice.
        scatters = "all-reduce-scatter" in name
        for line in lines:
            match = INSTRUCTION.match(line)
            if not match or not turns[name]:
                continue
            # A TPU's gather is in the text once more in each product that it goes on beside.
            channel = tuple(re.findall(r"channel_id=\d+", line))
            if _is_fusion(name) and channel in channels:
                continue
            channels.add(channel or (line,))
            results = _results(match[2], match[3], bool(match[4]))
            group = _group(line, devices)
            kind = "reduce-scatter" if scatters and match[3] == "all-reduce" else match[3]
            shrinks = group if kind != match[3] else 1
            totals[f"{kind} {results[0][0]}"]["count"] += turns[name]
            for dtype, sizes in results:
                size = SIZES[dtype] * math.prod(int(size) for size in sizes.split(",") if size) // shrinks
                totals[f"{kind} {dtype}"].update(
                    {"count": 0, "bytes": turns[name] * size, "sent": turns[name] * _sent(kind, size, group)}
                )
    return {kind: dict(total) for kind, total in sorted(totals.items())}


def _is_fusion(name: str) -> bool:
    """Whether a computation is the body of a fusion, by its name."""
    return "fusion" in name or "fused_computation" in name


def _results(shapes: str, kind: str, starts: bool) -> Sequence[tuple[str, str]]:
    """(dtype, sizes) of what a collective gives: of one that starts, the text has its operands first."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    if not starts or kind == "all-reduce":
        return arrays
    if kind == "collective-permute":  # and two handles last, on a TPU
        arrays = [(dtype, sizes) for dtype, sizes in arrays if (dtype, sizes) != ("u32", "")] or arrays
    return arrays[len(arrays) // 2 :]


def _group(line: str, devices: int) -> int:
    """How many devices a collective is among."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return listed[1].count(",") + 1
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if counted:
        return int(counted[1])
    named = re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", line)  # between them may be the devices' order
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return devices


def _sent(kind: str, size: int, group: int) -> int:
    """Bytes that a device sends for a result of `size` bytes, around a ring of `group` devices."""
    if kind == "collective-permute":
        return size
    times = {"all-reduce": 2 / group, "reduce-scatter": 1.0}.get(kind, 1 / group)
    return round(times * (group - 1) * size)


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of every computation of a module, by name."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        match = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if match:
            lines = bodies.setdefault(match[1], [])
        else:
            lines.append(line)
    return bodies


def _turns(text: str) -> collections.Counter[str]:
    """How often each computation runs in a call."""
    bodies = _computations(text)
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    if entry is None:
        raise ValueError("the text is not that of a compiled module: it has no ENTRY")
    turns: collections.Counter[str] = collections.Counter()

    def visit(name: str, times: int) -> None:
        turns[name] += times
        for line in bodies[name]:
            called = re.findall(r"(body|to_apply|calls|condition|true_computation)=%?([\w.\-]+)", line)
            roles = dict(called)
            loop = _loop_turns(line, bodies[roles["condition"]], bodies[roles["body"]]) if "body" in roles else 1
            for role, other in called:
                visit(other, times * loop if role == "body" else times)
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                for other in re.findall(r"%?([\w.\-]+)", branches):
                    visit(other, times)

    visit(entry[1], 1)
    return turns


def _loop_turns(line: str, condition: list[str], body: list[str]) -> int:
    """How often a loop turns. A CPU's and a GPU's text says it; in a TPU's, which doesn't, a counter goes from 0 up to
    what the condition compares it with."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    tests = "\n".join(condition)
    compared = re.search(r"compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT", tests)
    place = compared and re.search(rf"%{re.escape(compared[1])} = .*? get-tuple-element\(.*?\), index=(\d+)", tests)
    if not compared or not place or compared[2] not in _constants(condition):
        return 1
    return -(-_constants(condition)[compared[2]] // _stride(body, int(place[1])))


def _stride(body: list[str], place: int) -> int:
    """What a turn of a loop adds to the counter at this place of its tuple: 2 where the loop is unrolled once."""
    root = next(line for line in reversed(body) if line.lstrip().startswith("ROOT"))
    counter = re.findall(r"%([\w.\-]+)", root.partition(" tuple(")[2])[place : place + 1]
    added = counter and re.search(rf"%{re.escape(counter[0])} = .*? add\(%[\w.\-]+, %([\w.\-]+)\)", "\n".join(body))
    return _constants(body).get(added[1], 1) if added else 1


def _constants(lines: list[str]) -> dict[str, int]:
    """Whole numbers of a computation, by name."""
    return {
        name: int(value) for name, value in re.findall(r"%([\w.\-]+) = \w+\[\]\S* constant\((\d+)\)", "\n".join(lines))
    }
