"""What a workdir of a comparison says of it: what all its cells share, and the law that was fixed before the runs."""

from __future__ import annotations

import dataclasses
import json
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


def fix(workdir: Path, config: Config, grid: Grid, threshold: float | None = None) -> Law:
    """Writes down what a comparison is, or returns what was written down when it was begun, by its first step.

    Args:
      workdir: exists.
      config: what all cells share.
      grid: its first cell names the baseline and the seed, unless the comparison has them already.
      threshold: of p; None for that which the comparison was begun with.

    Raises:
      ConfigError: the comparison was begun with another threshold or config.
      UserError: the file can't be used.
    """
    path = workdir / COMPARISON
    keys = json.loads(json.dumps(_shared(config)))
    law = Law(grid.cells[0].variant, grid.cells[0].seed, THRESHOLD if threshold is None else threshold)
    try:
        if not any(workdir.glob(f"cells/*/{METRICS}")):
            workdirs.write_whole(path, {"law": dataclasses.asdict(law), "config": keys})
            return law
        saved = json.loads(path.read_text())
        fixed, previous = Law(**saved["law"]), dict(saved["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be used ({type(error).__name__}: {error}); take another workdir") from error
    if threshold not in (None, fixed.threshold):
        raise ConfigError(
            f"--threshold={threshold:g}, but {workdir} was begun with {fixed.threshold:g}: it is fixed before the "
            "runs; take another workdir for another"
        )
    differing = [
        f"{key} (there {previous[key]!r}, here {value!r})"
        for key, value in keys.items()
        if previous.get(key, value) != value  # a key that wasn't there yet has had its default
    ]
    if differing:
        raise ConfigError(
            f"{workdir} compares runs of another config; take another workdir, or mend: {'; '.join(differing)}"
        )
    return fixed


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
