"""main.py import --from=DIR --config=... --workdir=..."""

from pathlib import Path

from jaxstab.commands.base import WORKDIR, Call, Command, Flag, define_path


def _run(call: Call) -> None:
    from jaxstab.exchange import import_model

    source, workdir = call.required("from", "models/pythia-160m"), call.required("workdir", "runs/imported")
    import_model(Path(source), call.config(), Path(workdir), call.overridden)


COMMAND = Command(
    "makes a workdir of a model from elsewhere, with the recipe of --config; the run goes on from it",
    _run,
    (WORKDIR, Flag("from", None, "The folder of a Hugging Face model, or a file of llama2.c.", define_path)),
)
