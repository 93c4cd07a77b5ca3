"""JSON that somebody else may have written: whatever is wrong with it is a ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def loads(text: str | bytes) -> Any:
    """Parses JSON, and what Python's parser takes besides (NaN, Infinity).

    Raises:
      ValueError: the text is no JSON, is in no encoding of Unicode, or is nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def load(path: Path) -> dict[str, Any]:
    """The JSON object in a file, which is UTF-8.

    Raises:
      OSError: the file can't be read.
      ValueError: it holds no JSON object.
    """
    values = loads(path.read_text("utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"it holds no object, but {type(values).__name__}")
    return values
