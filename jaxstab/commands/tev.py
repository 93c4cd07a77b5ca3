"""main.py tev FILE..."""

from jaxstab.commands.base import Call, Command, Flag


def _run(call: Call) -> None:
    from jaxstab import diagnose

    diagnose.tev(call.files, call["out"])


COMMAND = Command(
    "prints the token embedding variability of workdirs, checkpoints and safetensors files",
    _run,
    (Flag("out", None, "The picture that is drawn."),),
    config=False,
    files="FILE...",
)
