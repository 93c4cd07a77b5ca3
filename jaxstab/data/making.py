"""What is made from a source for later runs: a tokenizer, and a TFDS set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxstab import durable
from jaxstab.config import UserError
from jaxstab.data.config import DataConfig
from jaxstab.data.console import console
from jaxstab.data.files import BadLines, reason_of
from jaxstab.data.packing import split_of
from jaxstab.data.sources import Source, documents, open_source
from jaxstab.data.tokenizers import END

TRAINING_CHARACTERS = 1 << 30
VERSION = "1.0.0"


def train_tokenizer(config: DataConfig, vocabulary: int, out: str | Path) -> Path:
    """Trains a byte-level BPE on the source's training split and writes it as a Hugging Face tokenizer.json.

    The end-of-document token <|endoftext|> is piece 0. The first 2^30 characters are used. The same text gives the same
    file.

    Args:
        config: the source and the split; its tokenizer and length play no part.
        vocabulary: pieces, 257 (the end token and the bytes) or more.
        out: a file, or a directory to write tokenizer.json in.

    Raises:
        UserError: `out` is another kind of file; the text is missing, damaged, or too little for so many pieces.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if Path(out).suffix not in ("", ".json") and not Path(out).is_dir():
        raise UserError(f"--out={out} is neither a .json file nor a directory")
    if vocabulary < 257:
        raise UserError(f"a vocabulary of {vocabulary} is too small: 257 are the bytes and the end token")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet)
    source = open_source(config)
    console.print(f"Training a BPE of {vocabulary:,} pieces on {source.title}", soft_wrap=True)
    tokenizer.train_from_iterator(_training_text(config, source), trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        raise UserError(f"the text gives only {tokenizer.get_vocab_size()} pieces: give more, or ask for fewer")
    return _write(tokenizer.to_str(pretty=True), Path(out))


def _training_text(config: DataConfig, source: Source) -> Iterator[str]:
    left = TRAINING_CHARACTERS
    for text in documents(source, BadLines(config.bad_lines)):
        if left <= 0:
            break
        if split_of(text, config.validation_fraction) == "train":
            left -= len(text)
            yield text


def _write(content: str, out: Path) -> Path:
    path = out if out.suffix == ".json" else out / "tokenizer.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return path


def prepare_tfds(config: DataConfig, out: str | Path, name: str) -> Path:
    """Writes the source's documents as a TFDS set of ArrayRecord files, which needs no TensorFlow to write or to read.

    The set has one split, train, with all documents, and one feature, text; read it with `data.source=tfds`,
    `data.name=<name>`, `data.data_dir=<out>`.

    Args:
        config: the source; its split, tokenizer and length play no part.
        out: the directory of TFDS sets to write to.
        name: the set's name, in snake_case.

    Returns:
        The prepared directory, `<out>/<name>/1.0.0`.

    Raises:
        UserError: the source or the name can't be used, or the set exists.
    """
    if not name.isidentifier() or name != name.lower():
        raise UserError(f"name={name!r} is no name for a TFDS set: use lower-case letters, digits and underscores")
    if (Path(out).expanduser() / name / VERSION).exists():
        raise UserError(f"{Path(out) / name / VERSION} exists already: delete it, or take another name")
    source = open_source(config)
    texts = documents(source, BadLines(config.bad_lines))
    builder = _builder_class(name, texts)(data_dir=Path(out).expanduser(), file_format="array_record")
    console.print(f"Writing {source.title} as the TFDS set {name} in {out}", soft_wrap=True)
    try:
        builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:  # TFDS passes on what its writers raise, each its own
        raise UserError(f"the TFDS set can't be written to {out}: {reason_of(error)}") from error
    return Path(builder.data_path)


def _builder_class(set_name: str, texts: Iterable[str]) -> type:
    import tensorflow_datasets as tfds

    class Documents(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Documents of local files."""

        name = set_name
        VERSION = tfds.core.Version(VERSION)
        code_path = None  # no checksums or description lie beside this class

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index, text in enumerate(texts):
                yield index, {"text": text}

    return Documents
