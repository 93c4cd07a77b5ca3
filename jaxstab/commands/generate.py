"""main.py generate --workdir=... --prompt=..."""

from absl import flags

from jaxstab.commands.base import STEP, WORKDIR, Call, Command, Flag
from jaxstab.config import ConfigError

FLAGS = (
    WORKDIR,
    STEP,
    Flag(
        "prompt",
        [],
        "What a text begins with; several are one batch. By default a document's beginning.",
        flags.DEFINE_multi_string,
    ),
    Flag("length", 100, "Tokens that are added at most; a text ends with its document.", flags.DEFINE_integer),
    Flag("temperature", 0.0, "Of the softmax that tokens are drawn from; 0 takes the likeliest.", flags.DEFINE_float),
    Flag("top_k", 0, "Draws among so many of the likeliest tokens; 0 is off.", flags.DEFINE_integer),
    Flag("top_p", 1.0, "Draws among the likeliest tokens of this probability together; 1 is off.", flags.DEFINE_float),
    Flag("seed", 0, "Of the draws.", flags.DEFINE_integer),
)


def _run(call: Call) -> None:
    from jaxstab.evaluate import Sampling, continued
    from jaxstab.train.trained import load

    if call["length"] < 1:
        raise ConfigError(f"--length={call['length']} must be at least 1")
    if not 0 <= call["seed"] < 2**32:
        raise ConfigError(f"--seed={call['seed']} must be from 0 to {2**32 - 1}")
    sampling = Sampling(call["temperature"], call["top_k"], call["top_p"])
    lm = load(call.required("workdir", "runs/first"), call["step"])
    for text in continued(lm, call["prompt"] or [""], call["length"], sampling, call["seed"]):
        print(text)


COMMAND = Command("continues each --prompt with the model in --workdir, as one batch", _run, FLAGS, config=False)
