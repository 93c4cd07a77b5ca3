"""What `main.py diagnose` says of a run, held against what was planted in it."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

NEAR = 5  # steps
HARM = 4.0  # standard errors that the loss has to rise by, and at least RISE nats
RISE = 0.05

# Which of the tool's words are right for a fault. There are several where what plants a fault has a name of its own:
# logits grow because weights are changed from outside, and a run that goes on without its moments has lost them.
WORDS: dict[str, tuple[str, ...]] = {
    "matrix": ("weights_changed",),
    "rows": ("weights_changed",),
    "entry": ("weights_changed",),
    "gain": ("weights_changed",),
    "moment": ("optimizer_state",),
    "gradient": ("gradient_corrupted",),
    "nan": ("nonfinite", "gradient_corrupted"),
    "rate glitch": ("rate_off_schedule",),
    "rate too high": ("learning_rate",),
    "decay": ("weight_decay",),
    "embedding": ("embedding_scale", "weights_changed"),
    "attention logits": ("attention_logits", "weights_changed"),
    "output logits": ("output_logits", "weights_changed"),
    "repeated data": ("data",),
    "foreign data": ("data",),
    "resumed without moments": ("bad_resume", "optimizer_state"),
    "resumed at another position": ("bad_resume", "data"),
    "resumed at another rate": ("bad_resume", "rate_off_schedule"),
}


def answer(workdir: Path) -> dict[str, Any]:
    """The causes that diagnose names, the first one first; `error` where it fell over."""
    from jaxstab.diagnose import diagnose

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            diagnose(workdir)
    except Exception as error:  # that it fell over is an answer, and counted
        return {"causes": [], "error": f"{type(error).__name__}: {error}"}
    report = json.loads((workdir / "report" / "diagnose.json").read_text())
    keys = ("cause", "role", "layer", "head", "step")
    causes = [{key: cause.get(key) for key in keys} for cause in report["causes"]]
    return {"causes": causes, "advice": [each["keys"] for each in report["advice"]]}


def as_it_stood(workdir: Path, step: int, copy: Path) -> Path:
    """A copy of what a run had left at the end of a step, without its checkpoints."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("checkpoints", "report", "tensorboard", "*.lock"))
    metrics = copy / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
    for part in (copy / "measurements").glob("*.parquet"):
        table = pq.read_table(part)
        pq.write_table(table.filter(pc.less_equal(table["step"], step)), part)
    for incident in (copy / "incidents").glob("*"):
        if int(incident.name) > step:
            shutil.rmtree(incident)
    return copy


def losses(workdir: Path) -> dict[int, float]:
    """The training loss by step."""
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: _number(line["train/loss"]) for line in lines if "train/loss" in line}


def _number(value: Any) -> float:
    return float(value) if value is not None else float("nan")


def effect(workdir: Path, fault: dict[str, Any], twin: Path | None) -> dict[str, Any]:
    """How much a fault cost, in nats, and whether that shows in the loss.

    A fault in the middle is held against the trend of the 60 steps before it, by means of five steps within the 40
    after it; one from the start against a twin without it, over the last 40 steps.
    """
    loss = losses(workdir)
    if twin:
        healthy = losses(twin)
        cost = _mean(loss, sorted(healthy)[-40:]) - _mean(healthy, sorted(healthy)[-40:])
        return {"cost": _rounded(cost), "shows": bool(not cost < RISE)}
    before = [step for step in range(fault["first"] - 60, fault["first"]) if step in loss]
    after = [step for step in range(fault["first"], fault["first"] + 40) if step in loss]
    trend = np.polyfit(before, [loss[step] for step in before], 1)
    noise = float(np.std([loss[step] - np.polyval(trend, step) for step in before])) / np.sqrt(5)
    beyond = np.array([loss[step] - np.polyval(trend, step) for step in after])
    if not np.isfinite(beyond).all():
        return {"cost": None, "shows": True}
    cost = max((float(np.mean(beyond[start : start + 5])) for start in range(max(1, len(beyond) - 4))), default=0.0)
    return {"cost": _rounded(cost), "shows": bool(cost > max(RISE, HARM * noise))}


def _mean(loss: dict[int, float], steps: Iterable[int]) -> float:
    return float(np.mean([loss.get(step, np.nan) for step in steps]))


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def verdict(fault: dict[str, Any], said: dict[str, Any]) -> str:
    """right, near, silent or misleading: the first cause, its place and its step against what was planted."""
    causes = [cause for cause in said["causes"] if cause["cause"] != "none"]
    if said.get("error"):
        return "fell over"
    if not causes or causes[0]["cause"] == "not_known":
        return "near" if causes and _near(fault, causes[0]) and _placed(fault, causes[0]) else "silent"
    words = WORDS[fault["fault"]]
    if causes[0]["cause"] in words and _placed(fault, causes[0]) and _near(fault, causes[0]):
        return "right"
    named = any(cause["cause"] in words for cause in causes)
    placed = fault.get("role") and _placed(fault, causes[0]) and _near(fault, causes[0])
    return "near" if named or placed else "misleading"


def _placed(fault: dict[str, Any], cause: dict[str, Any]) -> bool:
    """Whether a cause has the fault's place, as far as the fault has one."""
    return _has_head(fault, cause) and all(fault.get(key) in (None, cause[key]) for key in ("role", "layer"))


def _has_head(fault: dict[str, Any], cause: dict[str, Any]) -> bool:
    """Whether a cause's head, one of queries, reads the keys that were planted in, where a head was."""
    if fault.get("head") is None or cause["head"] is None:
        return fault.get("head") is None
    return fault["head"] == cause["head"] * fault["kv_heads"] // fault["heads"]


def _near(fault: dict[str, Any], cause: dict[str, Any]) -> bool:
    """Whether the step is within NEAR; what grows for many steps may be noticed at any of them."""
    if fault["first"] == 1:
        return True
    slow = fault["last"] - fault["first"] >= 40
    return fault["first"] - NEAR <= (cause["step"] or 0) <= (fault["last"] if slow else fault["first"]) + NEAR


def alarmed(said: dict[str, Any]) -> bool:
    """Whether anything is said to be wrong."""
    return bool(said.get("error")) or any(cause["cause"] not in ("none", "not_known") for cause in said["causes"])


def last_loss(workdir: Path) -> float | None:
    """The mean loss of the last 40 steps; None where it isn't finite."""
    loss = losses(workdir)
    return _rounded(_mean(loss, sorted(loss)[-40:]))


def advice_table(rows: list[dict[str, Any]]) -> str:
    """What following the first advice did, run by run, in Markdown."""
    table = ["| told | planted | advice | loss at the end | with the advice | better by |", "|---|---|---|---|---|---|"]
    for row in rows:
        before, advised = row["before"], row["advised"]
        gain = "" if None in (before, advised) else f"{before - advised:+.3f}"
        table.append(f"| {row['cause']} | {row['fault']} | `{row['advice']}` | {before} | {advised} | {gain} |")
    return "\n".join(table)


def scores(lines: list[dict[str, Any]]) -> str:
    """The tables of a draw, in Markdown: by fault, and of false alarms with their interval."""
    kinds = ("right", "near", "silent", "misleading", "fell over")
    rows = [f"| planted | runs | shows in the loss | {' | '.join(kinds)} |", "|---" * (len(kinds) + 3) + "|"]
    planted = [line for line in lines if line["planted"]["fault"] != "none"]
    for name in WORDS:
        those = [line for line in planted if line["planted"]["fault"] == name]
        if those:
            rows.append(_row(name, those, kinds))
    shows = [line for line in planted if line["effect"]["shows"]]
    harmless = [line for line in planted if line not in shows and line["planted"]["first"] == 1]
    rows.append(_row("**shows in the loss**", shows, kinds))
    rows.append(_row("**doesn't**", [line for line in planted if line not in shows and line not in harmless], kinds))
    rows.append(_row("a setting no worse than its twin's, where silence is right too", harmless, kinds))
    looks = {
        "healthy runs": [line["said"] for line in lines if line["planted"]["fault"] == "none"],
        "runs one step before their fault": [line["before"] for line in planted if line.get("before")],
        "twins of runs at fault from the start": [line["twin"] for line in planted if line.get("twin")],
    }
    every = [said for each in looks.values() for said in each]
    rows += ["", "| healthy looks | false alarms | of | 95% interval |", "|---|---|---|---|"]
    rows += [_alarms(name, each) for name, each in (*looks.items(), ("**all**", every)) if each]
    return "\n".join(rows)


def _row(name: str, lines: list[dict[str, Any]], kinds: Iterable[str]) -> str:
    counts = collections.Counter(line["verdict"] for line in lines)
    shows = sum(line["effect"]["shows"] for line in lines)
    return f"| {name} | {len(lines)} | {shows} | {' | '.join(str(counts[kind] or '') for kind in kinds)} |"


def _alarms(name: str, looks: list[dict[str, Any]]) -> str:
    from scipy.stats import binomtest

    count = sum(map(alarmed, looks))
    interval = binomtest(count, len(looks)).proportion_ci(method="exact")
    return f"| {name} | {count} | {len(looks)} | {100 * interval.low:.1f} to {100 * interval.high:.1f}% |"
