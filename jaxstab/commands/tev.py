"""main.py tev FILE..."""

from jaxstab.commands.base import Call, Command, Flag, define_path
from jaxstab.config import local_path


def _run(call: Call) -> None:
    from jaxstab import diagnose

    diagnose.tev([local_path(file, "FILE") for file in call.files], call["out"])


COMMAND = Command(
    "prints the token embedding variability of workdirs, checkpoints and safetensors files",
    _run,
    (Flag("out", None, "The picture that is drawn.", define_path),),
    config=False,
    files="FILE...",
)
