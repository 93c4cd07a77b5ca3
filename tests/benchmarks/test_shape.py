"""What counts as a line of code, and that every method is where the table says."""

from benchmarks import shape

SOURCE = '''"""A module."""

import math  # counts


def outer(x):
    """Its docstring."""

    def inner(y):
        # a comment
        return """a text,
        of two lines""" + y

    return inner(x)
'''


def test_docstrings_comments_and_blank_lines_are_no_code(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    assert shape.part(tmp_path / "a.py") == (6, [5, 3])
    assert shape.part(tmp_path / "a.py", "inner") == (3, [3])


def test_the_table_is_of_code_that_is_there(capsys):
    shape.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(" 1 |") for line in lines) >= 15 and "| AdamC " in "".join(lines)
