"""What has its name is on the disk: a power loss takes what wasn't synced, and no name may stand for that.

The system calls of a whole run are traced. Each rename within the workdir and the cache must come after an fsync of
all that it names, and be followed by one of the directory that holds the name; metrics are synced before the
checkpoint that relies on them.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FSYNC = re.compile(r"(?:fsync|fdatasync)\(\d+<([^>]*)>")
RENAME = re.compile(r'rename(?:at2?)?\((?:AT_FDCWD[^,]*, )?"([^"]*)", (?:AT_FDCWD[^,]*, )?"([^"]*)"')
pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@pytest.fixture(scope="module")
def traced(tiny, tmp_path_factory):
    """A run's workdir, and its calls of fsync and rename in their order: ("fsync", path) and ("rename", old, new)."""
    top = tmp_path_factory.mktemp("traced")
    trace = ["strace", "-f", "-y", "-qq", "-s", "4096", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2"]
    cache = f"--config.data.cache_dir={top}/cache"
    command = [sys.executable, str(ROOT / "main.py"), *tiny.command(top / "run", cache)[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*trace, "-o", str(top / "trace"), *command], env=environment, capture_output=True, text=True, timeout=200
    )
    if "ptrace" in done.stderr.lower():
        pytest.skip("this system lets no process be traced")
    assert done.returncode == 0, done.stderr
    return top, list(calls((top / "trace").read_text()))


def calls(text):
    for line in text.splitlines():
        if call := FSYNC.search(line):
            yield ("fsync", call[1])
        elif call := RENAME.search(line):
            yield ("rename", call[1], call[2])


def test_whatever_is_renamed_is_on_the_disk_and_then_its_name(traced):
    top, known = traced
    ours = [(at, call) for at, call in enumerate(known) if call[0] == "rename" and not within_a_save(call[2])]
    assert len(ours) > 6, "cache, config, measurements, notes"
    for at, (_, old, new) in ours:
        if not new.startswith(str(top)):
            continue
        assert ("fsync", old) in known[:at], f"{new} may have no content"
        assert ("fsync", os.path.dirname(new)) in known[at:], f"{new} may have no name"


def within_a_save(path):
    """Orbax's own renames, of which a later test speaks."""
    return "/checkpoints/" in path


def test_a_checkpoint_is_whole_on_the_disk_before_the_next_is_begun(traced):
    top, known = traced
    directory = top / "run" / "checkpoints"
    saves = [call[2] for call in known if call[0] == "rename" and re.fullmatch(rf"{directory}/\d+", call[2])]
    assert [Path(path).name for path in saves] == ["2", "4", "6", "8"]
    for path, following in zip(saves, [*saves[1:], None], strict=True):
        begun = next((at for at, call in enumerate(known) if following and following + "." in call[1]), len(known))
        synced = {call[1] for call in known[:begun] if call[0] == "fsync"}
        assert {path, str(directory)} <= synced
        kept = directory / Path(path).name
        assert {str(each) for each in kept.rglob("*")} <= synced, "where it hasn't been deleted since"


def test_metrics_are_on_the_disk_before_the_checkpoint_that_relies_on_them(traced):
    top, known = traced
    metrics = ("fsync", str(top / "run" / "metrics.jsonl"))
    for number, step in enumerate((2, 4, 6, 8), 1):
        named = str(top / "run" / "checkpoints" / str(step))
        at = next(at for at, call in enumerate(known) if call[0] == "rename" and call[2] == named)
        assert known[:at].count(metrics) >= number
