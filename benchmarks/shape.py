"""Length and shape of the code: lines and functions of the whole package, and of each method that was added later.

    python benchmarks/shape.py

A line is one with code on it: blank ones, comments and docstrings don't count. A function has those inside it counted
with it, and once more by themselves.
"""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "jaxstab"
# What each is, its files, or functions of a file, and its lines in a registry.
METHODS = [
    ("AdamC", ["optimize/decays.py:adamc"], 1),
    ("cautious decay", ["optimize/decays.py:cautious"], 1),
    ("hyperball", ["optimize/decays.py:hyperball"], 1),
    ("learnable multipliers", ["reparam/learnable_multipliers.py"], 1),
    ("gated attention", ["model/transformer.py:_gated"], 0),
    ("attention sink", ["model/attention.py:with_sinks"], 0),
    ("NorMuon", ["optimize/normuon.py"], 1),
    ("Muon per head", ["optimize/heads.py"], 0),
    ("cautious update", ["optimize/adam.py:cautious_adamw"], 1),
    ("mu-centering", ["optimize/mu_centering.py"], 1),
    ("update-norm clip", ["optimize/recent_norms.py"], 1),
    ("sandwich, an exponent of peri", ["model/placements.py:peri"], 1),
    ("zero outputs, an option of normal", ["initialize/scales.py:normal"], 1),
    ("what the searches share", ["search/base.py", "search/descent.py"], 0),
    ("MetaInit", ["search/metainit.py"], 1),
    ("GradInit", ["search/gradinit.py"], 1),
    ("NIO", ["search/nio.py"], 1),
    ("Fixup", ["initialize/fixup.py", "reparam/fixup.py"], 2),
    ("AutoInit", ["initialize/autoinit.py", "model/variances.py"], 1),
    ("DyT", ["model/norms.py:dyt"], 1),
    ("Derf", ["model/norms.py:derf"], 1),
    ("Mix-LN", ["model/placements.py:mix"], 1),
    ("SPAM", ["optimize/spam.py"], 1),
    ("restart after a skip", ["optimize/restart.py"], 0),
    ("instruments", ["train/instruments.py", "train/jacobians.py", "stability/curvature.py"], 4),
]


class Part(NamedTuple):
    """Lines of code, and those of each function."""

    lines: int
    functions: list[int]


def code_lines(source: str, tree: ast.AST) -> set[int]:
    """The numbers of the lines that have code on them."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            lines -= _span(node.body[0])
    return lines


def part(path: Path, function: str = "") -> Part:
    """A file, or one function of it."""
    source = path.read_text()
    tree = ast.parse(source)
    lines = code_lines(source, tree)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    whole = lines
    if function:
        (outer,) = (node for node in nodes if node.name == function)
        nodes = [node for node in ast.walk(outer) if isinstance(node, ast.FunctionDef)]
        whole = lines & _span(outer)
    return Part(len(whole), [len(lines & _span(node)) for node in nodes])


def _span(node: ast.stmt) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


def spread(numbers: Sequence[int]) -> str:
    return f"{len(numbers):,} | {statistics.median(numbers):g} | {max(numbers)}"


def main() -> None:
    """Prints both tables."""
    parts = [part(path) for path in sorted(PACKAGE.rglob("*.py"))]
    print("| the package | count | median lines | longest |\n|---|---|---|---|")
    print(f"| files | {spread([each.lines for each in parts])} |")
    print(f"| functions | {spread([length for each in parts for length in each.functions])} |\n")
    print("| method | where | lines | functions | longest | registry lines |\n|---|---|---|---|---|---|")
    for name, places, registered in METHODS:
        of_method = [part(PACKAGE / file, function) for file, _, function in (each.partition(":") for each in places)]
        functions = [length for each in of_method for length in each.functions]
        where = ", ".join(f"`{each}`" for each in places)
        print(
            f"| {name} | {where} | {sum(each.lines for each in of_method)} | {len(functions)} | {max(functions)} | "
            f"{registered} |"
        )


if __name__ == "__main__":
    main()
