"""main.py diagnose --workdir=... [--replay=STEP]"""

from rich.console import Console

from jaxstab.commands.base import WORKDIR, Call, Command, Flag


def _run(call: Call) -> None:
    from jaxstab import diagnose

    workdir = call.required("workdir", "runs/first")
    if call["replay"]:
        diagnose.replay(workdir, call["replay"], Console(highlight=False))
    else:
        diagnose.diagnose(workdir)


COMMAND = Command(
    "says what happened to the run in --workdir, and where it began; writes report/diagnose.html there; "
    "with --replay=<step>, an incident's, it takes those steps again, with everything measured",
    _run,
    (WORKDIR, Flag("replay", None, "The incident that is replayed: its step, as in incidents/<step>.")),
    config=False,
)
