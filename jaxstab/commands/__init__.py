"""The commands of main.py, one file each; what a command needs is imported when it runs."""

from jaxstab.commands import compare, data, describe, diagnose, evaluate, export, generate, import_, plan, tev, train
from jaxstab.commands.base import WORKDIR, Call, Command, Flag, overrides

COMMANDS = {
    "train": train.COMMAND,
    "describe": describe.COMMAND,
    "plan": plan.COMMAND,
    "diagnose": diagnose.COMMAND,
    "import": import_.COMMAND,
    "export": export.COMMAND,
    "tev": tev.COMMAND,
    "compare": compare.COMMAND,
    "evaluate": evaluate.COMMAND,
    "generate": generate.COMMAND,
    "data tokenizer": data.TOKENIZER,
    "data prepare": data.PREPARE,
}

__all__ = ["COMMANDS", "WORKDIR", "Call", "Command", "Flag", "overrides"]
