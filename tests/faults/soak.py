"""Real training processes that are hurt, started again, and compared with the undisturbed run, bit for bit.

    python -m tests.faults.soak WORK RESULTS [--kills=100] [--steps=5000]

Every case is a line of JSON in RESULTS, written as soon as it is known; started again, only what is missing is done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.harms import DAMAGES
from tests.train.conftest import TinyRuns

ROOT = Path(__file__).parents[2]
STEPS = 400
LONGER = ("--config.train.extend=392", "--config.checkpoint.every=15", "--config.eval.every=40")
SAMPLES = 0.25  # seconds between two looks at a process
WARM = 1000  # steps after which memory must be flat


class Campaign:
    """Runs of one config in `work`, and the undisturbed one to compare them with."""

    def __init__(self, work: Path, results: Path):
        self.work, self.results = work, results
        (work / "corpus").mkdir(parents=True, exist_ok=True)
        self.tiny = TinyRuns(work / "corpus")
        self.reference = work / "reference"
        self.run(self.reference)

    def command(self, workdir: Path, *overrides: str, cache: str = "cache") -> list[str]:
        own = f"--config.data.cache_dir={self.work}/{cache}"
        return [sys.executable, str(ROOT / "main.py"), *self.tiny.command(workdir, *LONGER, own, *overrides)[1:]]

    def start(self, workdir: Path, *overrides: str, cache: str = "cache") -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(self.work / "compiled")}
        command = self.command(workdir, *overrides, cache=cache)
        log = open(workdir.with_suffix(".log"), "a")  # noqa: SIM115, closed with this process
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def run(self, workdir: Path, *overrides: str, cache: str = "cache") -> int:
        return self.start(workdir, *overrides, cache=cache).wait(timeout=300)

    def same_end(self, workdir: Path, with_logs: bool = True) -> str:
        """How a run's end differs from that of the undisturbed one; "" where it doesn't, bit for bit."""
        compare = self.tiny.assert_same_end if with_logs else self.tiny.assert_same_arrays
        try:
            compare(workdir, self.reference, STEPS)
        except (AssertionError, OSError, ValueError) as error:
            return f"{type(error).__name__}: {str(error)[:300]}"
        return ""

    def last_line(self, workdir: Path) -> str:
        lines = workdir.with_suffix(".log").read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")

    def told(self, workdir: Path) -> str:
        return workdir.with_suffix(".log").read_text(errors="replace")

    def record(self, **case: Any) -> None:
        with self.results.open("a") as file:
            file.write(json.dumps(case) + "\n")
        print(json.dumps(case), flush=True)

    def known(self, campaign: str) -> list[dict[str, Any]]:
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        return [line for line in map(json.loads, lines) if line["campaign"] == campaign]


def kills(campaign: Campaign, count: int, seed: int = 0) -> None:
    """SIGKILL at random moments, from the process's first to its last; each run goes on until it is complete."""
    done = sum(case["kills"] for case in campaign.known("kills"))
    for number in range(len(campaign.known("kills")), 10**6):
        if done >= count:
            return
        dice, workdir, cache = random.Random(f"{seed} {number}"), campaign.work / f"kills-{number}", f"cache-{number}"
        clear(workdir, campaign.work / cache)  # also what an interrupted campaign has left
        moments = []
        while True:
            process = campaign.start(workdir, cache=cache)
            moment = _moment(campaign, workdir, process, dice)
            process.kill()
            if process.wait(timeout=60) != -signal.SIGKILL:
                break
            moments.append(moment)
        complete = process.returncode == 0 and f"Complete: {STEPS} steps." in campaign.told(workdir)
        different = campaign.same_end(workdir) if complete else campaign.last_line(workdir)
        done += len(moments)
        campaign.record(campaign="kills", run=number, kills=len(moments), moments=moments, different=different)
        clear(*() if different else (workdir, campaign.work / cache))


def _moment(campaign: Campaign, workdir: Path, process: subprocess.Popen, dice: random.Random) -> str:
    """Waits for a random moment of a process, most often in its steps; returns what it was about then."""
    before = _last_step(workdir)
    if dice.random() < 0.15:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=dice.uniform(0, 8))
    else:
        deadline = time.monotonic() + 120
        while _last_step(workdir) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=dice.uniform(0, 1.2))
    step = _last_step(workdir)
    return f"step {step}" if step else "before the first step"


def _last_step(workdir: Path) -> int:
    """The step that the last whole line of metrics tells of; 0 where there is none."""
    try:
        with open(workdir / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 20_000))
            steps = re.findall(rb'^\{"step": (\d+),.*\}$', file.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(steps[-1]) if steps else 0


def clear(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
        path.with_suffix(".log").unlink(missing_ok=True)


def signals(campaign: Campaign) -> None:
    """SIGTERM, SIGINT, SIGTERM twice, and SIGTERM with a grace of 3 s, within the steps; then on to the end."""
    for name, sent, codes in (
        ("SIGTERM", [signal.SIGTERM], {143}),
        ("SIGINT", [signal.SIGINT], {130}),
        ("SIGTERM twice", [signal.SIGTERM, signal.SIGTERM], {143, -signal.SIGTERM}),
        ("SIGTERM, 3 s of grace", [signal.SIGTERM], {143}),
    ):
        if any(case["signal"] == name for case in campaign.known("signals")):
            continue
        workdir = campaign.work / "signal"
        clear(workdir)
        process = campaign.start(workdir)
        while _last_step(workdir) < 30 and process.poll() is None:
            time.sleep(0.01)
        start = time.monotonic()
        for number in sent:
            process.send_signal(number)
        try:
            code = process.wait(timeout=3 if "grace" in name else 60)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        seconds = time.monotonic() - start
        wrong = "" if code in codes else f"exit {code}: {campaign.last_line(workdir)}"
        code = campaign.run(workdir)
        different = wrong or campaign.same_end(workdir) if code == 0 else campaign.last_line(workdir)
        campaign.record(campaign="signals", signal=name, seconds=round(seconds, 2), different=different)


def damages(campaign: Campaign) -> None:
    """What harms a workdir between two starts: the run goes on to the same end, or one line says why not."""
    part = campaign.work / "part"
    if not part.exists():
        process = campaign.start(part)
        while _last_step(part) < 100 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
    for name, (harm, outcome, told) in DAMAGES.items():
        if any(case["damage"] == name for case in campaign.known("damages")):
            continue
        workdir = campaign.work / "damaged"
        clear(workdir)
        shutil.copytree(part, workdir)
        harm(workdir)
        before = tree(workdir)
        code = campaign.run(workdir)
        different = "" if re.search(told, campaign.told(workdir)) else "it isn't told"
        different = different or ("a traceback" if "Traceback" in campaign.told(workdir) else "")
        if outcome == "refused":
            different = different or _refused(campaign, workdir, code, before)
        elif code:
            different = campaign.last_line(workdir)
        else:
            different = different or campaign.same_end(workdir, with_logs=outcome == "same end")
        campaign.record(campaign="damages", damage=name, outcome=outcome, different=different)


def _refused(campaign: Campaign, workdir: Path, code: int, before: dict[str, bytes]) -> str:
    """How a refusal isn't one line that leaves everything as it was; "" where it is."""
    line = campaign.last_line(workdir)
    if code != 1 or not line.startswith("error: "):
        return f"exit {code}: {line}"
    return "" if tree(workdir) == before else "something was written"


def tree(workdir: Path) -> dict[str, bytes]:
    """What must stay as it is where a run is refused; orbax clears away a checkpoint that was never finished."""
    files = (path for path in workdir.rglob("*") if path.is_file() and path.name != ".lock")
    files = (path for path in files if not any(part.endswith(".orbax-checkpoint-tmp") for part in path.parts))
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


def memory(campaign: Campaign, steps: int) -> None:
    """Resident set, open files and threads of a process over a long run, and the bytes of its arrays: all flat."""
    if campaign.known("memory"):
        return
    workdir = campaign.work / "long"
    clear(workdir)
    overrides = f"--config.train.extend={steps - 8}", "--config.checkpoint.every=100", "--config.eval.every=100"
    process = campaign.start(workdir, *overrides)
    samples = []
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError):
            samples.append((_last_step(workdir), *_size_of(process.pid)))
        time.sleep(SAMPLES)
    # Without the process's end, where it lets go of everything.
    late = np.array([sample for sample in samples if WARM <= sample[0] < steps], float)
    report: dict[str, Any] = {"campaign": "memory", "steps": steps, "exit": process.returncode, "samples": len(late)}
    for column, name in enumerate(("resident_MB", "open_files", "threads"), 1):
        slope, level = np.polyfit(late[:, 0], late[:, column], 1)
        report[name] = {
            "per_1000_steps": round(1000 * slope, 4),
            "median": round(float(np.median(late[:, column])), 2),
            "residual": round(float(np.std(late[:, column] - slope * late[:, 0] - level)), 3),
        }
    campaign.record(**report)


def _size_of(pid: int) -> tuple[float, int, int]:
    """Resident MB, open files and threads of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, len(os.listdir(f"/proc/{pid}/task"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=5000)
    arguments = parser.parse_args()
    campaign = Campaign(arguments.work.absolute(), arguments.results)
    parts: tuple[Callable[[], None], ...] = (
        lambda: damages(campaign),
        lambda: signals(campaign),
        lambda: memory(campaign, arguments.steps),
        lambda: kills(campaign, arguments.kills),
    )
    for part in parts:
        part()
    cases = [case for name in ("damages", "signals", "kills") for case in campaign.known(name)]
    failures = [case for case in cases if case["different"]]
    print(f"{len(cases)} cases, {sum(case.get('kills', 0) for case in cases)} kills: {len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
