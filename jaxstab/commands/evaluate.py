"""main.py evaluate --workdir=... --data=... [--tasks=...]"""

import functools
from pathlib import Path

from absl import flags
from rich.console import Console

from jaxstab.commands.base import STEP, WORKDIR, Call, Command, Flag, define_path

FLAGS = (
    WORKDIR,
    STEP,
    Flag("data", "", "The directory with wikitext-2/, lambada/ and superglue/; it is only read.", define_path),
    Flag(
        "tasks",
        ["wikitext", "lambada"],
        "What is measured: wikitext, lambada, and with lm-evaluation-harness superglue (3-shot) or any task it knows.",
        flags.DEFINE_list,
    ),
    Flag("fewshot", None, "Examples in a prompt of the harness; by default the task's number.", flags.DEFINE_integer),
    Flag("stride", 0, "Tokens that a window of wikitext scores; 0 is model.max_length.", flags.DEFINE_integer),
    Flag("limit", 0, "Documents of each task, the first ones; 0 takes all.", flags.DEFINE_integer),
    Flag("results", None, "The JSON file that results are written to, besides the table.", define_path),
)


def _run(call: Call) -> None:
    from jaxstab.evaluate import BENCHMARKS, harness, opened
    from jaxstab.evaluate.results import table
    from jaxstab.logging.console import say, shown
    from jaxstab.train.trained import load
    from jaxstab.train.workdir import write_whole

    console = Console(highlight=False)
    workdir, data = call.required("workdir", "runs/first"), Path(call["data"])
    own = [task for task in call["tasks"] if task in BENCHMARKS]
    others = [task for task in call["tasks"] if task not in BENCHMARKS]
    benchmarks = opened(data, own, call["stride"], call["limit"])
    by_harness = harness.opened(others, data.absolute(), call["fewshot"], call["limit"]) if others else None
    lm = load(workdir, call["step"])
    say(console, f"Step {lm.step} of {workdir}, {lm.max_length} tokens at once: {', '.join(call['tasks'])}")
    results = [result for name, measure in benchmarks.items() for result in measure(lm, shown(console, name))]
    if by_harness:
        results += by_harness(lm, functools.partial(shown, console))
    say(console, table(results))
    if call["results"]:
        record = {"workdir": workdir, "step": lm.step, "results": [result.as_json() for result in results]}
        write_whole(Path(call["results"]), record)
        say(console, f"Written: {call['results']}")


COMMAND = Command(
    "measures the model in --workdir by --tasks: perplexities of WikiText and LAMBADA, SuperGLUE, or any task of "
    "lm-evaluation-harness",
    _run,
    FLAGS,
    config=False,
)
