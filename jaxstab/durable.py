"""Files that are there whole or not at all, whenever the power goes: what a name shows is on the disk before it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8, in place of one that may be there, also where another process writes it too.

    Raises:
      OSError: it can't be written; what was there is as it was.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def replace(source: Path, target: Path) -> None:
    """Renames a file or a directory, whose content is on the disk before its new name and the name on return."""
    sync(source)
    os.replace(source, target)
    _sync_one(target.parent)


def replace_directory(source: Path, target: Path) -> None:
    """Like `replace`, for a directory in place of one that may be there and isn't empty."""
    sync(source)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(source, target)
    _sync_one(target.parent)


def sync(path: Path) -> None:
    """Brings a file, or all that is below a directory, to the disk."""
    for each in (*path.rglob("*"), path) if path.is_dir() else (path,):
        _sync_one(each)


def sync_with_name(path: Path) -> None:
    """Like `sync`, and the name of the file or directory, too."""
    sync(path)
    _sync_one(path.parent)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
