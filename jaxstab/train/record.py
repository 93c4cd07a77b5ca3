"""The record beside a checkpoint's arrays: what each of them is, sealed against change, and what made it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from typing import Any

from jaxstab.train.digests import digests, leaves_by_path

PACKAGES = ("jaxstab", "jax", "flax", "optax", "orbax-checkpoint", "numpy")

Described = dict[str, dict[str, Any]]


def record_of(step: int, state: Any, meta: dict[str, Any]) -> dict[str, Any]:
    """The record of a state after `step` updates, as it will be read from JSON; `meta` gets the libraries' versions."""
    record = {"step": step, "meta": {**meta, "versions": versions()}, "arrays": described(state, digests(state))}
    record = json.loads(json.dumps(record))  # tuples are lists, keys are strings
    return record | {"sha256": _sha256(record)}


def versions() -> dict[str, str]:
    """The versions that made a checkpoint: Python, jaxstab and the libraries that numbers depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # jaxstab, run from its source tree


def described(tree: Any, digest: dict[str, str] | None = None) -> Described:
    """{path: shape and dtype} of every array, as JSON has them, and the digest where it is given."""
    arrays: Described = {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in leaves_by_path(tree).items()
    }
    for path, value in (digest or {}).items():
        arrays[path]["digest"] = value
    return arrays


def mismatch(saved: Described, wanted: Described) -> str:
    """How the saved arrays differ from the wanted ones; "" where they don't."""
    differences = [f"{path} is missing there" for path in wanted if path not in saved]
    differences += [f"{path} is unknown here" for path in saved if path not in wanted]
    for path in wanted.keys() & saved.keys():
        there, here = (f"{array['dtype']}{array['shape']}" for array in (saved[path], wanted[path]))
        if there != here:
            differences.append(f"{path} is {there} there and {here} here")
    return min(differences) + and_more(differences) if differences else ""


def and_more(items: list[str]) -> str:
    """How many there are beside the one that is named."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def sealed(record: Any) -> bool:
    """Whether a checkpoint's record is what was written."""
    if not isinstance(record, dict):
        return False
    return record.get("sha256") == _sha256({key: value for key, value in record.items() if key != "sha256"})


def _sha256(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
