"""Inputs that look for new paths through a reader: coverage-guided, by atheris (`pip install atheris`).

    python -m tests.faults.guided journal -runs=20000

takes a reader of tests/faults/readers.py and libFuzzer's options; what is trouble is kept in a file, which it names.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("tests.faults.guided needs atheris: pip install atheris")

with atheris.instrument_imports(include=["jaxstab"]):
    from tests.faults.fuzz import trouble
    from tests.faults.readers import READERS


class Trouble(Exception):
    """A reader does what it may not."""


def main() -> None:
    kind, *options = sys.argv[1:] or [""]
    if kind not in READERS:
        sys.exit(f"there is no reader {kind!r}: {', '.join(READERS)}")
    directory = Path(tempfile.mkdtemp())
    (directory / "seeds").mkdir()
    (directory / "seeds" / "sound").write_bytes(READERS[kind].content)

    def one_input(content: bytes) -> None:
        if told := trouble(READERS[kind], content, directory / "read"):
            raise Trouble(told)

    (directory / "read").mkdir()
    atheris.Setup([sys.argv[0], *options, str(directory / "seeds")], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
