"""Packed corpora are made once, and kept under the hash of all that made them.

A cache is built aside, under a lock, and renamed into place with its manifest: it is there whole, or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from jaxstab import durable, safe_json
from jaxstab.config import UserError
from jaxstab.data.config import DataConfig
from jaxstab.data.console import console
from jaxstab.data.packing import SPLITS, pack
from jaxstab.data.records import PackedSplit
from jaxstab.data.sources import Source, open_source
from jaxstab.data.tokenizers import Tokenizer, load_tokenizer

FORMAT = 2  # raise it when the same documents would be packed differently
MANIFEST = "manifest.json"
NEEDED = {"digest", "bad_lines", "unknown"}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A packed corpus, ready to be read.

    Attributes:
        train, validation: the two splits; a document is in one of them.
        tokenizer: what made the tokens.
        directory: where the records lie.
        digest: SHA-256 over the records of both splits: the same on every machine, by any number of processes.
    """

    train: PackedSplit
    validation: PackedSplit
    tokenizer: Tokenizer
    directory: Path
    digest: str


def prepare(config: DataConfig) -> Prepared:
    """Packs the source's documents, or opens the cache of a run that did.

    Tokenising starts processes that import the main module: a script that calls this needs its main guard.

    Raises:
        UserError: bad values, missing or damaged files, too many bad lines, or too little text for one record.
    """
    tokenizer = load_tokenizer(config.tokenizer, config.end_token)
    source = open_source(config)
    recipe = _recipe(config, tokenizer, source)
    directory = Path(config.cache_dir).expanduser() / hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    manifest = read_manifest(directory, recipe)
    if manifest is None:
        with _locked(directory):
            manifest = read_manifest(directory, recipe) or _build(config, tokenizer, source, recipe, directory)
    _report_bad_lines(manifest["bad_lines"], config.bad_lines)
    _report_unknown(manifest["unknown"])
    train, validation = (PackedSplit(directory, name, manifest) for name in SPLITS)
    return Prepared(train, validation, tokenizer, directory, manifest["digest"])


def cached_split(config: DataConfig, digest: str) -> PackedSplit | None:
    """The training split of a packed corpus, found by its digest; None where the config's cache doesn't have it."""
    for path in sorted(Path(config.cache_dir).expanduser().glob(f"*/{MANIFEST}")):
        manifest = read_manifest(path.parent)
        if manifest and manifest.get("digest") == digest:
            return PackedSplit(path.parent, SPLITS[0], manifest)
    return None


def _recipe(config: DataConfig, tokenizer: Tokenizer, source: Source) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "source": config.source,
        "documents": source.identity(),
        "tokenizer": tokenizer.digest,
        "length": config.length,
        "validation_fraction": config.validation_fraction,
        "max_tokens": config.max_tokens,
    }


def read_manifest(directory: Path, recipe: Any = None) -> dict[str, Any] | None:
    """The manifest of a whole cache; None where there is none, it is of another recipe, or a file isn't as it says."""
    try:
        manifest = safe_json.load(directory / MANIFEST)
        whole = recipe is None or (manifest["recipe"] == json.loads(json.dumps(recipe)) and manifest.keys() >= NEEDED)
        for name in SPLITS:
            whole = whole and _whole(PackedSplit(directory, name, manifest))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


def _whole(split: PackedSplit) -> bool:
    return all(path.parent == split.directory and path.stat().st_size == size for path, size in split.files.items())


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One run builds a cache at a time; the system frees the lock when that run ends, however it ends."""
    lock = filelock.FileLock(f"{directory}.lock")
    with _writable(directory.parent):
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            console.print(f"Waiting for another run that is making {directory}", soft_wrap=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _writable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"data.cache_dir={directory} cannot be written: {error.strerror or error}") from error


def _build(config: DataConfig, tokenizer: Tokenizer, source: Source, recipe: dict, directory: Path) -> dict[str, Any]:
    """Makes the cache aside and renames it into place; the caller holds the lock."""
    parent = directory.parent
    for leftover in (directory, *parent.glob(f"{directory.name}.building-*")):
        if leftover.exists():
            console.print(f"{leftover} is incomplete and is made again", soft_wrap=True)
            shutil.rmtree(leftover)
    with _writable(parent), tempfile.TemporaryDirectory(prefix=f"{directory.name}.building-", dir=parent) as aside:
        whole = Path(aside) / "whole"
        whole.mkdir()
        packed = pack(config, tokenizer, source, Path(aside), whole)
        _check_enough(packed["splits"], config)
        digest = hashlib.sha256("".join(split["sha256"] for split in packed["splits"].values()).encode()).hexdigest()
        manifest = {"digest": digest, "length": config.length, "vocabulary": tokenizer.vocabulary, "end": tokenizer.end}
        manifest |= {**packed, "recipe": recipe}
        (whole / MANIFEST).write_text(json.dumps(manifest, indent=1))
        durable.replace(whole, directory)
    return manifest


def _check_enough(splits: dict[str, Any], config: DataConfig) -> None:
    wanted = {"train": config.validation_fraction < 1, "validation": config.validation_fraction > 0}
    for name, split in splits.items():
        if wanted[name] and not split["records"]:
            raise UserError(
                f"the {name} split has {split['tokens']} tokens in {split['documents']} documents, fewer than one "
                f"record of {config.length + 1}: give more text, or change data.length or data.validation_fraction"
            )


def _report_bad_lines(places: list[str], limit: int) -> None:
    if len(places) > limit:
        raise UserError(f"{places[limit]} ({len(places)} bad in all; data.bad_lines={limit} are tolerated)")
    if places:
        console.print(f"{len(places)} bad lines were skipped, the first: {places[0]}", markup=False, soft_wrap=True)


def _report_unknown(times: int) -> None:
    if times:
        what = "the tokenizer has no piece for a part of the text, where its unknown piece stands, or nothing"
        console.print(f"{times:,} times {what}", soft_wrap=True)
