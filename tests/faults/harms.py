"""What harms a workdir between two starts of its run, and how the run answers.

{harm: (what is done to the workdir, the outcome, what is told)}. The outcome is "same end" where the run must end as
the undisturbed one, bit for bit; "goes on" where logs are lost by it; "refused" where one line says what is wrong,
with nothing overwritten.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

Harm = Callable[[Path], None]
AHEAD = 2 * 24 * 3600 * 10**9  # ns


def newest(workdir: Path, count: int = 1) -> list[Path]:
    """The newest checkpoints."""
    steps = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    return sorted(steps, key=lambda path: int(path.name))[-count:]


def largest(directory: Path) -> Path:
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path, by: int = 0) -> None:
    os.truncate(path, path.stat().st_size - by if by else path.stat().st_size // 2)


def emptied(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


def leftover(workdir: Path) -> None:
    aside = workdir / "checkpoints" / "1000.orbax-checkpoint-tmp"
    shutil.copytree(newest(workdir)[0], aside)


def older_config(workdir: Path) -> None:
    """As a version wrote it that had not this key yet, and one that is gone."""
    path = workdir / "config.json"
    saved = json.loads(path.read_text())
    del saved["config"]["eval.sample_length"]
    saved["config"]["train.gone"] = 3
    path.write_text(json.dumps(saved))


def edited(workdir: Path, name: str, old: str, new: str) -> None:
    path = workdir / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def last_part(workdir: Path) -> Path:
    """The newest file of measurements that holds steps up to the newest checkpoint; later ones come again anyway."""
    step = int(newest(workdir)[0].name)
    return max(path for path in (workdir / "measurements").iterdir() if int(path.stem.split("-")[0]) <= step)


def all_damaged(workdir: Path) -> None:
    for path in newest(workdir, 99):
        cut(largest(path))


def from_the_future(workdir: Path) -> None:
    """As the host's clock leaves a run, and then goes back by two days: every file, and what is named by time."""
    for path in (path for path in workdir.rglob("*") if path.is_file()):
        ahead = path.stat().st_mtime_ns + AHEAD
        os.utime(path, ns=(ahead, ahead))
    for path in (workdir / "tensorboard").iterdir():
        name, _, moment = path.name.rpartition(".")
        path.rename(path.with_name(f"{name}.{int(moment) + AHEAD}"))


NEWEST, ASIDE = r"checkpoint \d+ is damaged \(", "set aside"
DAMAGES: dict[str, tuple[Harm, str, str]] = {
    "nothing": (lambda workdir: None, "same end", "Continuing in"),
    "checkpoint: a flipped bit": (lambda workdir: flip(largest(newest(workdir)[0])), "same end", NEWEST),
    "checkpoint: truncated": (lambda workdir: cut(largest(newest(workdir)[0])), "same end", NEWEST),
    "checkpoint: a missing file": (lambda workdir: largest(newest(workdir)[0]).unlink(), "same end", NEWEST),
    "checkpoint: an empty step directory": (lambda workdir: emptied(newest(workdir)[0]), "same end", NEWEST),
    "checkpoint: a leftover temporary": (leftover, "same end", "Continuing in"),
    "checkpoint: under another name": (
        lambda workdir: newest(workdir)[0].rename(workdir / "checkpoints" / "999"), "same end", NEWEST,
    ),
    "checkpoints: all damaged": (all_damaged, "refused", "every checkpoint in .* is damaged"),
    "config.json: of an older version": (older_config, "same end", "train.gone"),
    "config.json: cut": (lambda workdir: cut(workdir / "config.json"), "refused", "config.json can't be used"),
    "config.json: empty": (lambda workdir: os.truncate(workdir / "config.json", 0), "refused", "config.json"),
    "config.json: missing": (lambda workdir: (workdir / "config.json").unlink(), "refused", "no config.json"),
    "config.json: of another run": (
        lambda workdir: edited(workdir, "config.json", '"model.width": 16', '"model.width": 32'), "refused", "width",
    ),
    "journal: no line of one": (
        lambda workdir: (workdir / "interventions.jsonl").write_bytes(b"\0" * 64 + b"\n"), "refused", "no intervention",
    ),
    "journal: a torn last line": (
        lambda workdir: (workdir / "interventions.jsonl").write_text('{"kind": "sk'), "same end", "was torn",
    ),
    "journal: in UTF-16": (
        lambda workdir: (workdir / "interventions.jsonl").write_text('{"kind": "skip"}\n', "utf-16"), "refused", "line",
    ),
    "metrics: cut": (lambda workdir: cut(workdir / "metrics.jsonl"), "goes on", "Continuing in"),
    "metrics: zeros within": (lambda workdir: flip_to_zeros(workdir / "metrics.jsonl"), "goes on", ASIDE),
    "metrics: of another trainer": (
        lambda workdir: (workdir / "metrics.jsonl").write_text('{"iter": 1, "loss": 2}\n' * 9), "goes on", ASIDE,
    ),
    "metrics: missing": (lambda workdir: (workdir / "metrics.jsonl").unlink(), "goes on", "Continuing in"),
    "measurements: the newest cut by ten bytes": (lambda workdir: cut(last_part(workdir), 10), "goes on", ASIDE),
    "measurements: the newest empty": (lambda workdir: last_part(workdir).write_bytes(b""), "goes on", ASIDE),
    "measurements: missing": (lambda workdir: shutil.rmtree(workdir / "measurements"), "goes on", "Continuing in"),
    "TensorBoard: events damaged": (
        lambda workdir: flip(max((workdir / "tensorboard").iterdir())), "same end", "Continuing in",
    ),
    "clock: back by two days": (from_the_future, "same end", "Continuing in"),
    "cache: deleted": (lambda workdir: shutil.rmtree(workdir.parent / "cache"), "same end", "Tokenising"),
}  # fmt: skip


def flip_to_zeros(path: Path) -> None:
    """As a file system leaves a file whose blocks were never written."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 3)
        file.write(bytes(4096))
