"""The docs wrap at 100 columns."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WIDTH = 100
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def too_wide(text):
    """Numbers of the lines of prose beyond WIDTH: no row of a table, no code, and with a space to break at."""
    wide, fenced = [], False
    for number, line in enumerate(text.splitlines(), start=1):
        fenced ^= line.startswith("```")
        code = fenced or line.startswith("    ")
        if len(line) > WIDTH and not code and not line.startswith("|") and " " in line.strip(" -")[:WIDTH]:
            wide.append(number)
    return wide


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_wraps(page):
    assert too_wide(page.read_text()) == []


@pytest.mark.parametrize("line", ["word " * 21, "- " + "word " * 21, "  " + "word " * 21])
def test_a_wide_line_is_found(line):
    assert too_wide(f"{line}\n\n```\n{line}\n```\n\n| {line} |\n\n{'x' * 120}\n\n{line}") == [1, 11]
