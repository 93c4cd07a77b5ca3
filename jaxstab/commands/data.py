"""main.py data tokenizer, and main.py data prepare"""

from absl import flags

from jaxstab.commands.base import OUT, Call, Command, Flag


def _tokenizer(call: Call) -> None:
    from jaxstab import data

    out = data.train_tokenizer(call.config().data, call["vocabulary"], call.required("out", "tokenizer.json"))
    print(f"Written: {out}; use it with --config.data.tokenizer={out}")


def _prepare(call: Call) -> None:
    from jaxstab import data

    place, name = call.required("out", "data"), call["name"]
    out = data.prepare_tfds(call.config().data, place, name)
    print(f"Written: {out}; use it with --config.data.source=tfds and --config.data.name={out}")


TOKENIZER = Command(
    "trains a byte-pair tokenizer of --vocabulary pieces on the config's source, into --out",
    _tokenizer,
    (OUT, Flag("vocabulary", 8192, "Pieces of the tokenizer.", flags.DEFINE_integer)),
)
PREPARE = Command(
    "writes the config's source as a TFDS data set --name below --out",
    _prepare,
    (OUT, Flag("name", "corpus", "Name of the data set.")),
)
