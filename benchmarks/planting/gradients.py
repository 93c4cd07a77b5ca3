"""Gradients that are changed where a step is traced, from outside of the library."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax

from jaxstab.table import path_of
from jaxstab.train import objective


@contextlib.contextmanager
def changed_gradients(change: Callable[[str, Any], Any]) -> Iterator[None]:
    """Where a step is traced, gradients by the effective weights pass through `change`, which is given their paths."""
    original = objective.mean_gradients

    def changed(*arguments: Any) -> Any:
        gradients, *rest = original(*arguments)
        return jax.tree_util.tree_map_with_path(lambda path, g: change(path_of(path), g), gradients), *rest

    with mock.patch.object(objective, "mean_gradients", changed):
        yield
