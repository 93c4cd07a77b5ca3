"""main.py compare --config=... --methods=... --learning_rates=... --seeds=... --workdir=..."""

import re
from pathlib import Path

from absl import flags

from jaxstab.commands.base import WORKDIR, Call, Command, Flag
from jaxstab.config import ConfigError

FLAGS = (
    WORKDIR,
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
    grid = read_grid(config, METHODS, call["methods"], call["learning_rates"], call["seeds"], call["vary"])
    workdir = Path(call.required("workdir", "runs/comparison"))
    machine = int(share[1]), int(share[2])
    compare(config, grid, workdir, machine, call["threshold"], call["until"] == "promotion", PUBLISHED)


COMMAND = Command(
    "runs a grid of --methods, --learning_rates and --seeds on a config, and reports what they came to", _run, FLAGS
)
