"""What a workdir of a comparison says of it: what all its cells share, and the law that was fixed before the runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxstab.compare.cells import RESULT, read, row_of
from jaxstab.compare.grid import RATE, SEEDS, Grid
from jaxstab.compare.tables import Result
from jaxstab.config import ConfigError, UserError, flatten
from jaxstab.logging.run import METRICS
from jaxstab.train import workdir as workdirs
from jaxstab.train.config import Config, training_keys

COMPARISON = "comparison.json"
THRESHOLD = 0.05  # of p, where none is asked for
PATIENCE = 10.0  # seconds, in which a network file system shows what another machine wrote


@dataclasses.dataclass(frozen=True)
class Law:
    """What is fixed before the first run.

    Attributes:
      baseline: the variant that others are held against.
      seed: the one that chooses rates.
      threshold: the largest p at which a difference isn't noise.
    """

    baseline: str
    seed: int
    threshold: float


@contextlib.contextmanager
def begun(workdir: Path, config: Config, grid: Grid, threshold: float | None = None, source: str = "") -> Iterator[Law]:
    """The law of a comparison, which is fixed by its first run, and by a process that is at work on it until then.

    Args:
      workdir: exists.
      config: what all cells share.
      grid: its first cell names the baseline and the seed, unless the comparison has them already.
      threshold: of p; None for that which the comparison was begun with.
      source: of the weights that runs begin with; "" where they are drawn.

    Raises:
      ConfigError: the comparison was begun with another threshold, config or source.
      UserError: the workdir can't be used.
    """
    if (workdir / workdirs.CONFIG).exists():
        raise UserError(f"{workdir} holds a run; take another workdir for a comparison")
    with contextlib.ExitStack() as stack:
        law = Law(grid.cells[0].variant, grid.cells[0].seed, THRESHOLD if threshold is None else threshold)
        keys = json.loads(json.dumps(_shared(config) | {"from": source}))
        try:
            stack.enter_context(workdirs.alone(workdir))
            free = not any(workdir.glob(f"cells/*/{METRICS}"))
        except workdirs.BusyError:  # by another process of this comparison, which may not have a run yet
            free = False
            if not any(workdir.glob(f"cells/*/{METRICS}")):
                _wait_for(workdir, law, keys)
        if free:
            workdirs.write_whole(workdir / COMPARISON, {"law": dataclasses.asdict(law), "config": keys})
        yield law if free else _fixed(workdir, keys, threshold)


def _fixed(workdir: Path, keys: dict[str, Any], threshold: float | None) -> Law:
    """The law that was fixed before; raises UserError where it is that of another comparison."""
    fixed, previous = read_comparison(workdir)
    if threshold not in (None, fixed.threshold):
        raise ConfigError(
            f"--threshold={threshold:g}, but {workdir} was begun with {fixed.threshold:g}: it is fixed before the "
            "runs; take another workdir for another"
        )
    workdirs.refuse_another(f"{workdir} compares runs of", {"from": ""} | previous, keys)
    return fixed


def read_comparison(workdir: Path) -> tuple[Law, dict[str, Any]]:
    """What a comparison was begun with: its law, and the keys that all runs share; UserError where it can't be read."""
    path = workdir / COMPARISON
    try:
        saved = json.loads(path.read_text())
        return Law(**saved["law"]), dict(saved["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be used ({type(error).__name__}: {error}); take another workdir") from error


def _wait_for(workdir: Path, law: Law, keys: dict[str, Any]) -> None:
    """Waits for what another process writes as it begins, which may be the same, over what came to nothing before."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(UserError):
            if read_comparison(workdir) == (law, keys):
                return
        time.sleep(0.1)


def check_methods(workdir: Path, grid: Grid) -> None:
    """Raises ConfigError where a run of one of the grid's variants had other keys: its method has changed since."""
    now = {cell.variant: cell.config for cell in grid.cells}
    for path in sorted(workdir.glob(f"cells/*/{RESULT}")):
        variant = read(path)["variant"]
        if variant in now:
            workdirs.check_same(path.parent, now[variant], free=(RATE, *SEEDS))


def _shared(config: Config) -> dict[str, Any]:
    """The keys of training and of its evaluation that all cells have, where no method or axis sets another."""
    keys = flatten(config)
    training = set(training_keys(keys)) - {RATE, *SEEDS}
    return {key: value for key, value in keys.items() if key in training or key.startswith("eval.")}


def rows_of(workdir: Path, grid: Grid) -> list[Result]:
    """The rows of all cells that are done: those of the grid in its order, and those of earlier grids after them."""
    own = [row for cell in grid.cells if (row := row_of(workdir, cell))]
    names = {cell.name for cell in grid.cells}
    others = (path for path in sorted(workdir.glob(f"cells/*/{RESULT}")) if path.parent.name not in names)
    return own + [read(path) for path in others]
