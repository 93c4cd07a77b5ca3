"""Sources of documents. Each knows its identity, by the content of its files, and yields documents by units of work."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxstab import safe_json
from jaxstab.config import UserError
from jaxstab.data import files
from jaxstab.data.config import DataConfig
from jaxstab.data.files import BadLines, Unit, reason_of
from jaxstab.data.identity import digest, digests

DOCUMENTS_PER_UNIT = 4096
PYTHON_FILES_PER_UNIT = 128
NOT_SOURCES = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # of a features.json, today's and the older one's
# {short name: the hub's id, configuration and text field}
HUB = {
    "refinedweb": ("tiiuae/falcon-refinedweb", "default", "content"),
    "c4": ("allenai/c4", "en", "text"),
    "fineweb": ("HuggingFaceFW/fineweb", "default", "text"),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where documents come from.

    Attributes:
        title: what people call it.
        identity: gives JSON that changes when the documents do; part of the cache's key.
        units: lists the picklable units of work, whose documents in order are the corpus.
    """

    title: str
    identity: Callable[[], Any]
    units: Callable[[], list[Unit]]


def open_source(config: DataConfig) -> Source:
    """The source that the config names; raises UserError where it isn't there."""
    kinds = {"stdlib": _stdlib, "text": _text, "tfds": _tfds, "huggingface": _hub}
    return kinds[config.source](config)


def documents(source: Source, bad: BadLines) -> Iterator[str]:
    """All documents of a source, in order."""
    for unit in source.units():
        yield from unit(bad)


def _text(config: DataConfig) -> Source:
    paths = files.find(config.files)
    title = f"{len(paths)} files, {sum(path.stat().st_size for path in paths) / 1e6:,.1f} MB"

    def content() -> Any:
        return [config.field, list(zip(map(files.kind, paths), digests(paths, config.cache_dir), strict=True))]

    return Source(title, content, lambda: [unit for path in paths for unit in files.file_units(path, config.field)])


def _stdlib(_config: DataConfig) -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(_python_sources(root))
    if not paths:
        raise UserError(f"data.source=stdlib: no Python sources under {root}; use data.source=text")
    starts = range(0, len(paths), PYTHON_FILES_PER_UNIT)
    return Source(
        f"the standard library of Python {sys.version_info.major}.{sys.version_info.minor}, {len(paths)} files",
        lambda: [digest(path) for path in paths],  # a tenth of a second
        lambda: [functools.partial(_python_files, paths[start : start + PYTHON_FILES_PER_UNIT]) for start in starts],
    )


def _python_sources(root: Path) -> Iterator[Path]:
    """The sources below a directory, without a look at what is installed there, which may be many times as much."""
    for directory, names, files_there in os.walk(root):
        names[:] = set(names) - NOT_SOURCES
        yield from (Path(directory, name) for name in files_there if name.endswith(".py"))


def _python_files(paths: list[Path], _bad: BadLines) -> Iterator[str]:
    """Whole files; the few that are not UTF-8 (they test just that) are left out."""
    for path in paths:
        with files.readable(path), contextlib.suppress(UnicodeDecodeError):
            yield path.read_text("utf-8")


def _tfds(config: DataConfig) -> Source:
    builder = _tfds_builder(config.name, config.data_dir)
    info = builder.info
    stored = info.file_format and info.file_format.value
    if stored != "array_record":
        raise UserError(
            f"data.name={config.name}: {info.full_name} is stored as {stored}, which takes TensorFlow to read: "
            "prepare it with file_format=array_record (docs/data.md says how)"
        )
    rows = len(_tfds_rows(builder, config))
    bounds = [(start, min(start + DOCUMENTS_PER_UNIT, rows)) for start in range(0, rows, DOCUMENTS_PER_UNIT)]
    return Source(
        f"{info.full_name}, split {config.split}, {rows:,} documents",
        lambda: [info.full_name, config.split, config.field, rows, _content(str(builder.data_path), config)],
        lambda: [functools.partial(_tfds_documents, config, range(*bound)) for bound in bounds],
    )


def _tfds_builder(name: str, data_dir: str) -> Any:
    tfds = _import("tensorflow_datasets", "data.source=tfds needs tensorflow-datasets: pip install tensorflow-datasets")
    place = data_dir or "~/tensorflow_datasets"
    directory = Path(name).expanduser()
    _check_features(directory if directory.is_dir() else Path(place).expanduser() / re.split("[:/]", name)[0])
    try:
        if directory.is_dir():
            return tfds.builder_from_directory(directory)
        builder = tfds.builder(name, data_dir=Path(place).expanduser(), try_gcs=False)
    except Exception as error:  # tfds raises its own, FileNotFoundError, ImportError of TensorFlow, …
        raise UserError(f"data.name={name}: no prepared TFDS set of that name or directory in {place}") from error
    if not builder.data_path.exists():
        raise UserError(f"data.name={name}: not prepared yet, {builder.data_path} is missing (docs/data.md says how)")
    return builder


def _check_features(directory: Path) -> None:
    """Raises UserError where a prepared set names features outside TFDS: the library would import, and so run, them."""
    for path in directory.rglob("features.json"):
        try:
            foreign = {kind for kind in _kinds(safe_json.load(path)) if not kind.startswith("tensorflow_datasets.")}
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read: {reason_of(error)}") from error
        if foreign:
            raise UserError(f"{path} has features that aren't TFDS's own: {', '.join(sorted(foreign))}")


def _kinds(features: Any) -> Iterator[str]:
    """The classes that a features.json names, in today's form and the older one."""
    if isinstance(features, dict):
        yield from (str(features[key]) for key in CLASS_KEYS if isinstance(features.get(key), str))
    if isinstance(features, dict | list):
        for each in features.values() if isinstance(features, dict) else features:
            yield from _kinds(each)


def _tfds_rows(builder: Any, config: DataConfig) -> Any:
    fields = list(builder.info.features)
    if config.field not in fields:
        raise UserError(f"data.name={config.name}: no field {config.field!r}: it has {', '.join(fields)}")
    try:
        return builder.as_data_source(split=config.split)
    except Exception as error:  # an unknown split is a ValueError or a KeyError, depending on its form
        splits = ", ".join(builder.info.splits)
        raise UserError(f"data.split={config.split}: {builder.info.full_name} has {splits}") from error


def _tfds_documents(config: DataConfig, indices: range, bad: BadLines) -> Iterator[str]:
    rows = _tfds_rows(_tfds_builder(config.name, config.data_dir), config)
    with _readable(f"data.name={config.name}"):
        for index in indices:
            yield from files.tolerated(rows[index], config.field, f"{config.name}: document {index}", bad)


def _hub(config: DataConfig) -> Source:
    name, subset, field = HUB.get(config.name, (config.name, "", config.field))
    subset = config.subset or subset
    return Source(
        f"{name} {subset} {config.split}".replace("  ", " "),
        lambda: [name, subset, config.split, field, _content(name, config)],
        lambda: _hub_units(name, subset, config.split, field),
    )


def _content(directory: str, config: DataConfig) -> list[Any]:
    """Names and digests of a local data set's files; a hub's data set has none, and is known by its name alone."""
    paths = sorted(path for path in Path(directory).rglob("*") if path.is_file())
    names = [str(path.relative_to(directory)) for path in paths]
    return list(zip(names, digests(paths, config.cache_dir), strict=True))


def _hub_units(name: str, subset: str, split: str, field: str) -> list[Unit]:
    rows = _hub_rows(name, subset, split)
    if rows.column_names and field not in rows.column_names:
        raise UserError(f"data.name={name}: no field {field!r}: it has {', '.join(rows.column_names)}")
    shards = rows.num_shards
    return [functools.partial(_hub_documents, rows.shard(shards, i), field, f"{name} shard {i}") for i in range(shards)]


def _hub_rows(name: str, subset: str, split: str) -> Any:
    """The data set as a stream of rows, cut into shards."""
    datasets = _import("datasets", "data.source=huggingface needs the datasets library: pip install -e .[hf]")
    try:
        directory = Path(name).expanduser()
        if (directory / "state.json").exists():
            saved = datasets.load_from_disk(directory)
            return saved.to_iterable_dataset(num_shards=max(1, len(saved) // DOCUMENTS_PER_UNIT))
        if (directory / "dataset_dict.json").exists():
            return _hub_rows(str(directory / split), subset, split)
        return datasets.load_dataset(name, subset or None, split=split, streaming=True)
    except Exception as error:  # the library raises its own, and those of the libraries below it
        what = f"data.name={name} subset={subset} split={split}"
        raise UserError(f"{what} cannot be loaded: {reason_of(error)}") from error


def _hub_documents(rows: Iterable[dict[str, Any]], field: str, title: str, bad: BadLines) -> Iterator[str]:
    with _readable(title):  # the network may fail
        for index, row in enumerate(rows):
            yield from files.tolerated(row, field, f"{title}, row {index}", bad)


@contextlib.contextmanager
def _readable(title: str) -> Iterator[None]:
    """Turns what the readers of a data set raise, each its own, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{title} cannot be read: {reason_of(error)}") from error


def _import(module: str, otherwise: str) -> ModuleType:
    try:
        return __import__(module)
    except ImportError as error:
        raise UserError(otherwise) from error
