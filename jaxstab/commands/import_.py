"""main.py import --from=DIR --config=... --workdir=..."""

from pathlib import Path

from jaxstab.commands.base import FROM, WORKDIR, Call, Command


def _run(call: Call) -> None:
    from jaxstab.exchange import import_model

    source, workdir = call.required("from", "models/pythia-160m"), call.required("workdir", "runs/imported")
    import_model(Path(source), call.config(), Path(workdir), call.overridden)


COMMAND = Command(
    "makes a workdir of a model from elsewhere, with the recipe of --config; the run goes on from it",
    _run,
    (WORKDIR, FROM),
)
