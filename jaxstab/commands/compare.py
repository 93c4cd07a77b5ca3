"""main.py compare --config=... [--from=DIR] --methods=... --learning_rates=... --seeds=... --workdir=..."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console

from jaxstab.commands.base import FROM, WORKDIR, Call, Command, Flag
from jaxstab.config import ConfigError

if TYPE_CHECKING:
    from jaxstab.compare.cells import Begin
    from jaxstab.compare.grid import Grid, Overrides
    from jaxstab.train.config import Config

FLAGS = (
    WORKDIR,
    FROM,
    Flag("methods", [], "What is compared, the baseline first: names of configs/methods.py.", flags.DEFINE_list),
    Flag("learning_rates", [], "The peak rates that are tried; by default the config's.", flags.DEFINE_list),
    Flag("seeds", [], "The seeds of the runs; by default the config's.", flags.DEFINE_list),
    Flag("vary", [], "One more axis of the grid: --vary=key=value,value.", flags.DEFINE_multi_string),
    Flag("cells", "0/1", "The share of the runs that this machine takes: --cells=i/n."),
    Flag(
        "threshold",
        None,
        "The largest p at which a difference isn't noise, fixed by the first run; 0.05 where it isn't given.",
        flags.DEFINE_float,
    ),
    Flag("until", "", "promotion: only the runs that decide which methods win; by default all."),
)


def _run(call: Call) -> None:
    from configs.methods import METHODS
    from configs.published import PUBLISHED
    from jaxstab.compare import compare, read_grid

    config = call.config()
    if not call["methods"]:
        raise ConfigError("--methods is missing: for instance --methods=small,wesar")
    share = re.fullmatch(r"(\d+)/(\d+)", call["cells"])
    if share is None or not int(share[1]) < int(share[2]):
        raise ConfigError(f"--cells={call['cells']} must be i/n with i from 0 to n-1: for instance --cells=0/4")
    if call["until"] not in ("", "promotion"):
        raise ConfigError(f"--until={call['until']} isn't known; --until=promotion is, or leave it out")
    if call["threshold"] is not None and not 0 < call["threshold"] < 1:
        raise ConfigError(f"--threshold={call['threshold']:g} must lie between 0 and 1")
    workdir = Path(call.required("workdir", "runs/comparison"))
    source, begin = str(Path(call["from"]).resolve()) if call["from"] else "", None
    known: Mapping[str, Overrides] = METHODS
    if source:
        config, begin, known = _imported(Path(source), config, workdir, call)
    grid = read_grid(config, known, call["methods"], call["learning_rates"], call["seeds"], call["vary"])
    if source:
        _check(grid, config, source)
    machine = int(share[1]), int(share[2])
    compare(config, grid, workdir, machine, call["threshold"], call["until"] == "promotion", PUBLISHED, source, begin)


def _imported(source: Path, config: Config, workdir: Path, call: Call) -> tuple[Config, Begin, Mapping[str, Overrides]]:
    """The config of runs that begin with a model's weights, what puts these into a run's directory, and the methods."""
    from configs.methods import METHODS
    from jaxstab.exchange import import_model, recipe_of, undrawn

    def begin(config: Config, directory: Path) -> None:
        import_model(source, config, directory, ("data.tokenizer",), Console(quiet=True))

    known = {name: undrawn(overrides) for name, overrides in METHODS.items()}
    for place, name in enumerate(call["methods"]):
        twin = next((other for other in call["methods"][:place] if known.get(name) == known.get(other)), None)
        if name in known and twin:
            raise ConfigError(f"{twin} and {name} in --methods differ in how weights are drawn; with --from none are")
    drawn = next((axis for axis in call["vary"] if axis.startswith("init.")), None)
    if drawn:
        raise ConfigError(f"--vary={drawn} is of how weights are drawn; with --from none are")
    return recipe_of(source, config, workdir, call.overridden), begin, known


def _check(grid: Grid, config: Config, source: str) -> None:
    """Raises ConfigError where a cell can't begin with the model's weights."""
    from jaxstab.exchange import check_model

    for cell in grid.cells:
        try:
            check_model(cell.config, config.model)
        except ConfigError as error:
            raise ConfigError(f"{cell.variant} can't begin with {source}: {error}") from error


COMMAND = Command(
    "runs a grid of --methods, --learning_rates and --seeds on a config, and reports what they came to", _run, FLAGS
)
