"""What devices send each other, read off a compiled program's text."""

from __future__ import annotations

import collections
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


def collectives(text: str) -> dict[str, dict[str, int]]:
    """The collectives of one call of a partitioned program.

    Args:
      text: `compiled.as_text()`.

    Returns:
      {"all-reduce f32": {"count": how many, "bytes": of their results on one device}}. One that stands in a loop counts
      as often as the loop is known to turn.
    """
    bodies, turns = _computations(text), _turns(text)
    totals: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, lines in bodies.items():
        for line in lines:
            match = re.match(rf"\s*(?:ROOT )?\S+ = (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
            if not match:
                continue
            results = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            if match[2] == "all-gather" and match[3]:  # the operands, then the results
                results = results[len(results) // 2 :]
            totals[f"{match[2]} {results[0][0]}"]["count"] += turns[name]
            for dtype, sizes in results:
                entries = math.prod(int(size) for size in sizes.split(",") if size)
                totals[f"{match[2]} {dtype}"]["bytes"] += turns[name] * SIZES[dtype] * entries
    return {kind: dict(total) for kind, total in sorted(totals.items())}


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
            loop = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for role, called in re.findall(r"(body|to_apply|calls|condition|true_computation)=%?([\w.\-]+)", line):
                visit(called, times * int(loop[1]) if loop and role == "body" else times)
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                for called in re.findall(r"%?([\w.\-]+)", branches):
                    visit(called, times)

    visit(entry[1], 1)
    return turns
