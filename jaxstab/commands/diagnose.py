"""main.py diagnose --workdir=... [--replay=STEP], or --log=PATH [--workdir=...]"""

from rich.console import Console

from jaxstab.commands.base import WORKDIR, Call, Command, Flag, define_path


def _run(call: Call) -> None:
    from jaxstab import diagnose

    if call["log"]:
        diagnose.diagnose_log(call["log"], call["workdir"])
        return
    workdir = call.required("workdir", "runs/first")
    if call["replay"]:
        diagnose.replay(workdir, call["replay"], Console(highlight=False))
    else:
        diagnose.diagnose(workdir)


COMMAND = Command(
    "says what happened to the run in --workdir, and where it began; writes report/diagnose.html there; "
    "with --replay=<step>, an incident's, it takes those steps again, with everything measured; "
    "with --log=<path>, it reads another trainer's log: JSON lines, trainer_state.json or TensorBoard's events",
    _run,
    (
        WORKDIR,
        Flag("replay", None, "The incident that is replayed: its step, as in incidents/<step>."),
        Flag("log", None, "A log of another trainer; the report goes into --workdir, or beside the log.", define_path),
    ),
    config=False,
)
