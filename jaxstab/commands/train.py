"""main.py [train] --config=... --workdir=..."""

from pathlib import Path

from jaxstab.commands.base import WORKDIR, Call, Command


def _run(call: Call) -> None:
    from jaxstab.train.loop import train

    train(call.config(), Path(call.required("workdir", "runs/first")))


COMMAND = Command("trains a model, or goes on with the run in --workdir (the default)", _run, (WORKDIR,))
