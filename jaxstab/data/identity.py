"""Which version of a file this is, by its content: equal names, sizes and times say nothing of it.

Reading a corpus takes minutes, so what it came to is noted in the cache's directory, under the file's size, times and
inode. Among them is the time of the inode's last change, which the system sets and `touch` can't.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from jaxstab import durable, safe_json
from jaxstab.data.console import console
from jaxstab.data.files import readable

NOTES = "digests.json"
SETTLED_NS = 2_000_000_000  # a file that was changed later than so long ago may change again within one tick
TOLD_BYTES = 1 << 30

Stamp = list[int]


def digests(paths: Sequence[Path], cache_dir: str) -> list[str]:
    """The SHA-256 of each file's content; of files that didn't change since they were read last, from the notes.

    Args:
      paths: the files.
      cache_dir: where the notes are kept, as far as it can be written.

    Raises:
      UserError: a file can't be read.
    """
    notes_path = Path(cache_dir).expanduser() / NOTES
    notes = _notes(notes_path)
    fresh = [path for path in paths if _noted(notes, path) is None]
    size = sum(path.stat().st_size for path in fresh)
    if size >= TOLD_BYTES:
        console.print(f"Reading {len(fresh)} files once, {size / 1e9:,.1f} GB, to know their content", soft_wrap=True)
    made = {path: (_stamp(path), digest(path)) for path in fresh}
    if made:
        _note(notes_path, notes | {str(path.absolute()): entry for path, entry in made.items() if _settled(entry[0])})
    return [_noted(notes, path) or made[path][1] for path in paths]


def digest(path: Path) -> str:
    """The SHA-256 of a file's content; raises UserError where it can't be read."""
    with readable(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _settled(stamp: Stamp) -> bool:
    """Whether another change would show in the times; not where they lie ahead of the host's clock."""
    return max(stamp[1], stamp[2]) < time.time_ns() - SETTLED_NS


def _noted(notes: dict, path: Path) -> str | None:
    match notes.get(str(path.absolute())):
        case [stamp, str(known)] if stamp == _stamp(path):
            return known
    return None


def _notes(path: Path) -> dict:
    try:
        return safe_json.load(path)
    except (OSError, ValueError):  # the files themselves are read then
        return {}


def _note(path: Path, notes: dict) -> None:
    with contextlib.suppress(OSError):  # a cache that is only read serves without
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, json.dumps(notes))
