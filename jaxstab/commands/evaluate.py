"""main.py evaluate --workdir=... --data=... [--tasks=...]"""

from pathlib import Path

from absl import flags
from rich.console import Console

from jaxstab.commands.base import STEP, WORKDIR, Call, Command, Flag

FLAGS = (
    WORKDIR,
    STEP,
    Flag("data", None, "The directory with wikitext-2/ and lambada/."),
    Flag("tasks", ["wikitext", "lambada"], "What is measured.", flags.DEFINE_list),
    Flag("stride", 0, "Tokens that a window of WikiText scores; 0 is model.max_length.", flags.DEFINE_integer),
    Flag("limit", 0, "Documents of each task, the first ones; 0 takes all.", flags.DEFINE_integer),
    Flag("results", None, "The JSON file that results are written to, besides the table."),
)


def _run(call: Call) -> None:
    from jaxstab.evaluate.benchmarks import opened
    from jaxstab.evaluate.results import table
    from jaxstab.logging.console import say, shown
    from jaxstab.train.trained import load
    from jaxstab.train.workdir import write_whole

    console = Console(highlight=False)
    workdir, data = call.required("workdir", "runs/first"), call.required("data", "corpora")
    benchmarks = opened(data, call["tasks"], call["stride"], call["limit"])
    lm = load(workdir, call["step"])
    results = [result for name, measure in benchmarks.items() for result in measure(lm, shown(console, name))]
    say(console, table(results))
    if call["results"]:
        record = {"workdir": workdir, "step": lm.step, "results": [result.as_json() for result in results]}
        write_whole(Path(call["results"]), record)


COMMAND = Command(
    "measures the model in --workdir: the perplexities of WikiText and LAMBADA, by the definitions of "
    "lm-evaluation-harness",
    _run,
    FLAGS,
    config=False,
)
