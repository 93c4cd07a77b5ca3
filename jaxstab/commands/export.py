"""main.py export --workdir=... --out=DIR"""

from pathlib import Path

from jaxstab.commands.base import OUT, STEP, WORKDIR, Call, Command


def _run(call: Call) -> None:
    from jaxstab.exchange import export

    out = call.required("out", "models/mine")
    export(Path(call.required("workdir", "runs/first")), Path(out), call["step"])


COMMAND = Command(
    "writes a checkpoint of --workdir for transformers: gates merged, with config, tokenizer and model card",
    _run,
    (WORKDIR, STEP, OUT),
    config=False,
)
