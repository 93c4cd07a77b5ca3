"""Files that are spoilt in every way: each reader answers in one line, or reads what is left.

    python -m tests.faults.fuzz 10000 [RESULTS]
    python -m tests.faults.fuzz bytes [RESULTS]

spoils as many at random, or each byte in turn, prints what is neither, and appends a JSON line of the counts to
RESULTS.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jaxstab.config import LONGEST_MESSAGE, UserError
from tests.faults.readers import READERS, Reader

SECONDS = 5.0  # for a file of a few kB: more is a hang
MULTIPLE, ROOM = 50, 32 << 20  # bytes of memory: a multiple of the file, and what a library's own tables take
DEEP = b'{"a":' * 30_000


def spoilt(content: bytes, dice: random.Random) -> bytes:
    """The content, hurt in one to three ways."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        content = dice.choice(HARMS)(content, dice)
    return content


def _flip(content: bytes, dice: random.Random) -> bytes:
    hurt = bytearray(content)
    for _ in range(dice.choice((1, 1, 4)) if hurt else 0):
        hurt[dice.randrange(len(hurt))] ^= 1 << dice.randrange(8)
    return bytes(hurt)


def _cut(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content) + 1)]


def _hole(content: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(content) + 1)
    length = dice.choice((1, 16, 4096))
    return content[:start] + bytes(length) + content[start + length :]


def _doubled(content: bytes, dice: random.Random) -> bytes:
    start, stop = sorted(dice.randrange(len(content) + 1) for _ in range(2))
    return content[:stop] + content[start:]


def _inserted(content: bytes, dice: random.Random) -> bytes:
    at, piece = dice.randrange(len(content) + 1), dice.choice(PIECES)
    return content[:at] + piece + content[at:]


def _value(content: bytes, dice: random.Random) -> bytes:
    """Another value after one of the colons or commas, as JSON has them."""
    places = [at for at, byte in enumerate(content) if byte in b":,["]
    if not places:
        return _flip(content, dice)
    start = dice.choice(places) + 1
    stop = min((at for at in (content.find(end, start) for end in (b",", b"}", b"]")) if at >= 0), default=start)
    return content[:start] + dice.choice(VALUES) + content[stop:]


def _encoded(content: bytes, dice: random.Random) -> bytes:
    return content.decode("utf-8", "replace").encode(dice.choice(("utf-16", "utf-8-sig", "utf-32", "utf-16-be")))


def _other(content: bytes, dice: random.Random) -> bytes:
    return dice.choice((b"", b"\n", b"{}", b"[]", b"null", b"PK\x03\x04", b"\x80\x04", DEEP, *OTHERS))


Harm = Callable[[bytes, random.Random], bytes]
HARMS: tuple[Harm, ...] = (_flip, _flip, _cut, _hole, _doubled, _inserted, _value, _value, _value, _encoded, _other)
PIECES = (b"\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\\ud800", b"{", b"../", b"NaN", b"<script>", b"9" * 5000)
VALUES = (
    *(b"null", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"1.5", b"NaN", b"Infinity", b"-Infinity", b"1e999"),
    *(b'"\\u0000"', b'"\\ud800"', b'"../../x"', b'"/etc/passwd"', b"9" * 30, b"9" * 5000, b"4294967296", b"[[1]]"),
    DEEP,
)
OTHERS = tuple(reader.content for reader in READERS.values())


def trouble(reader: Reader, content: bytes, directory: Path, measure: bool = False) -> str:
    """What a reader does that it may not; "" where it reads the content or refuses it in a line."""
    reader.put(directory, content)
    before, start = _listing(directory), time.monotonic()
    if measure:
        tracemalloc.start()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(open(os.devnull, "w")):
            warnings.simplefilter("ignore")
            reader.read(directory)
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > LONGEST_MESSAGE:
            return f"a message of several lines, or a long one: {str(error)[:200]!r}"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:100]}"
    finally:
        most = tracemalloc.get_traced_memory()[1] if measure else 0
        tracemalloc.stop()
    if _listing(directory) != before:
        return "it writes a file"
    if most > MULTIPLE * len(content) + ROOM:
        return f"{most:,} bytes of memory for {len(content):,}"
    return f"{time.monotonic() - start:.1f} s" if time.monotonic() - start > SECONDS else ""


def _listing(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def at_random(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` spoilt files, with the kind of each."""
    for number in range(count):
        kind = list(READERS)[number % len(READERS)]
        yield kind, spoilt(READERS[kind].content, random.Random(f"{seed} {number}"))


def byte_by_byte(places: int = 400) -> Iterator[tuple[str, bytes]]:
    """Each byte of every sound file as 0, as 255, with its lowest and with its highest bit changed; of files with more
    than twice as many, about `places`."""
    for kind, reader in READERS.items():
        whole = reader.content
        for place in range(0, len(whole), max(1, len(whole) // places)):
            for byte in (0, 255, whole[place] ^ 1, whole[place] ^ 128):
                yield kind, whole[:place] + bytes([byte]) + whole[place + 1 :]


def fuzz(spoilt_files: Iterable[tuple[str, bytes]]) -> tuple[collections.Counter, dict[str, tuple[str, bytes]]]:
    """Reads spoilt files; returns how many of each kind, and {trouble: (kind, content)}."""
    counts: collections.Counter = collections.Counter()
    troubles: dict[str, tuple[str, bytes]] = {}
    with tempfile.TemporaryDirectory() as top:
        for number, (kind, content) in enumerate(spoilt_files):
            directory = Path(top) / kind.replace("/", "_")
            directory.mkdir(exist_ok=True)
            if told := trouble(READERS[kind], content, directory, measure=number % 10 == 0):
                troubles.setdefault(f"{kind}: {told}", (kind, content))
            counts[kind] += 1
    return counts, troubles


def main() -> int:
    start = time.monotonic()
    counts, troubles = fuzz(byte_by_byte() if sys.argv[1] == "bytes" else at_random(int(sys.argv[1])))
    for told, (_, content) in troubles.items():
        print(f"{told}\n    {content[:300]!r}")
    print(f"{counts.total():,} spoilt files for {len(counts)} readers: {len(troubles)} kinds of trouble")
    if sys.argv[2:]:
        line = {
            "campaign": f"fuzz {sys.argv[1]}",
            "inputs": counts,
            "troubles": list(troubles),
            "seconds": time.monotonic() - start,
        }
        with open(sys.argv[2], "a") as file:
            file.write(json.dumps(line) + "\n")
    return bool(troubles)


if __name__ == "__main__":
    sys.exit(main())
