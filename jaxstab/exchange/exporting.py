"""`main.py export`: a run's checkpoint as a folder that `transformers` reads, its gates merged.

One stack of parameters and one shard are in memory at a time; the whole model never is.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxstab import data, durable, scale
from jaxstab.config import UserError
from jaxstab.exchange import card
from jaxstab.exchange.check import check
from jaxstab.exchange.families import FAMILIES
from jaxstab.exchange.family import Family, untied
from jaxstab.exchange.folder import INDEX, SINGLE
from jaxstab.exchange.tokenizer import write_tokenizer
from jaxstab.exchange.weights import EMBEDDING, ENDS, HEAD, groups, pieces, size, theirs
from jaxstab.logging.console import say
from jaxstab.model.config import ModelConfig
from jaxstab.model.transformer import read_table
from jaxstab.train.config import Config
from jaxstab.train.digests import leaves_by_path
from jaxstab.train.trained import checkpoint_of, config_of, read_record, read_weights

SHARD = 2_000_000_000  # bytes


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint whose weights are read part by part."""

    path: Path
    record: dict[str, Any]
    config: Config

    def parts(self, modules: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """Effective weights by path, of some modules or of all."""
        mesh = scale.make_mesh(scale.MeshConfig(fsdp=-1))
        weights = read_weights(self.path, self.record, self.config, mesh, modules)
        return {path: np.asarray(leaf) for path, leaf in leaves_by_path(weights).items()}


def export(workdir: Path, out: Path, step: int | None = None, console: Console | None = None) -> float | None:
    """Writes a checkpoint for `transformers`: safetensors, config.json, the tokenizer and a model card.

    Args:
      workdir: of a run.
      out: a new folder.
      step: of the checkpoint; None takes the newest.

    Returns:
      The largest difference of a logit between this model and what `transformers` reads; None where it isn't there.

    Raises:
      UserError: there is no such checkpoint, no class computes this model, or `out` is there already.
    """
    console = console or Console(highlight=False)
    path = checkpoint_of(workdir, step)
    record = read_record(path)
    source = Source(path, record, config_of(path, record))
    family = home(source.config.model)
    if out.exists():
        raise UserError(f"--out={out} is there already; export into a new folder")
    tokenizer = data.load_tokenizer(source.config.data.tokenizer, source.config.data.end_token)
    listed = list(pieces(family, read_table(untied(source.config.model))))
    entries = size(listed)
    say(
        console,
        f"Exporting step {path.name} of {workdir} as {family.architecture}: {entries:,} parameters, "
        f"{4 * entries / 1e9:.3g} GB",
    )
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        is_tied = write_shards(part, family, source)
        ends = {"tie_word_embeddings": is_tied, "eos_token_id": tokenizer.end}
        (part / "config.json").write_text(json.dumps({**family.config(source.config.model), **FIXED, **ends}, indent=1))
        write_tokenizer(source.config.data, tokenizer, part, source.config.model.max_length)
        (part / "README.md").write_text(card.card(workdir, int(path.name), source.config, family, out.name))
        durable.replace(part, out)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"{out} can't be written: {error.strerror}") from error
    return check(source.parts, source.config.model, out, console)


# No token is special but the end of a document; a padding token would have no embedding in some classes.
FIXED = {"bos_token_id": None, "pad_token_id": None, "dtype": "float32", "torch_dtype": "float32"}


def home(model: ModelConfig) -> Family:
    """The class that computes a model; raises a UserError that names the nearest where there is none."""
    different = {kind: family.differences(model) for kind, family in FAMILIES.items() if not family.gates}
    nearest = min(different, key=lambda kind: len(different[kind]))
    if different[nearest]:
        raise UserError(
            f"no class of transformers computes this model; the nearest, {FAMILIES[nearest].architecture}, doesn't "
            f"have {', '.join(different[nearest])}"
        )
    return FAMILIES[nearest]


def write_shards(folder: Path, family: Family, source: Source) -> bool:
    """Writes the tensors in files of at most SHARD bytes, and an index where these are several.

    Returns:
      Whether the head is the embedding, and was left out.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    names: list[list[str]] = []
    total = 0
    for shard in shards(tensors_of(family, source)):
        try:
            save_file(shard, folder / f"{len(names)}.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # it says what the system said, and isn't an OSError
            raise OSError(errno.EIO, " ".join(str(error).split())[:200]) from error
        names.append(list(shard))
        total += sum(array.nbytes for array in shard.values())
    files = [f"model-{i + 1:05}-of-{len(names):05}.safetensors" for i in range(len(names))]
    files = files if len(files) > 1 else [SINGLE]
    for number, file in enumerate(files):
        (folder / f"{number}.safetensors").rename(folder / file)
    weight_map = {name: file for file, shard in zip(files, names, strict=True) for name in shard}
    if len(files) > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))
    return family.head not in weight_map


def shards(tensors: Iterator[tuple[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """Tensors by the file: as many as SHARD bytes hold, and at least one."""
    shard: dict[str, np.ndarray] = {}
    for name, array in tensors:
        if shard and sum(each.nbytes for each in shard.values()) + array.nbytes > SHARD:
            yield shard
            shard = {}
        shard[name] = array
    yield shard


def tensors_of(family: Family, source: Source) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a checkpoint under the family's names; no head where it is the embedding."""
    model = source.config.model
    for modules, listed in groups(pieces(family, read_table(untied(model)))):
        stacks = source.parts(modules)
        if modules == ENDS:
            stacks[EMBEDDING], is_tied = _embedding(family, stacks[EMBEDDING], stacks[HEAD].T)
            listed = [piece for piece in listed if not (is_tied and piece.name == family.head)]
        for piece in listed:
            arrays = [stacks[row.path] for row in piece.rows]
            arrays = arrays if piece.layer is None else [stack[piece.layer] for stack in arrays]
            yield piece.name, theirs(family, model.heads, piece, arrays)


def _embedding(family: Family, embedding_VD: np.ndarray, head_VD: np.ndarray) -> tuple[np.ndarray, bool]:
    """The embedding as the family stores it, without a constant of its own, and whether the head is the same."""
    constant = np.float32(family.embedding_constant(embedding_VD.shape[1]))
    stored_VD = embedding_VD if constant == 1 else embedding_VD / constant
    # A constant leaves a rounding, which a tied matrix, stored without it, doesn't have.
    is_tied = np.allclose(stored_VD, head_VD, rtol=0 if constant == 1 else 1e-6, atol=0)
    return (head_VD if is_tied else stored_VD), is_tied
