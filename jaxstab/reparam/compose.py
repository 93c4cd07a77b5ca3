"""Chains of methods from the config: which ones make sense."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from jaxstab.config import ConfigError, MethodConfig, build_methods
from jaxstab.reparam.base import KINDS, Method


def compose(config: MethodConfig, methods: Mapping[str, Callable[..., Method]]) -> tuple[Method, ...]:
    """The chosen methods, the one nearest to the model first.

    Raises:
      ConfigError: two of them don't go together.
    """
    chain = build_methods(config, methods)
    for first, second in itertools.combinations(chain, 2):
        reason = _clash(first, chain[first], second, chain[second])
        if reason:
            raise ConfigError(f"reparam.method={config.method} doesn't go together: {reason}")
    return tuple(chain.values())


def _clash(name: str, method: Method, other: str, following: Method) -> str:
    """Why the second can't follow the first; "" where it can."""
    kinds = method.kind, following.kind
    if "none" in kinds:
        return f"{name if kinds[0] == 'none' else other} stores matrices as they are; leave it out"
    if kinds[0] == kinds[1]:
        return f"{name} and {other} both put {KINDS[kinds[0]]}; keep one"
    order = list(KINDS)
    if order.index(kinds[0]) > order.index(kinds[1]):
        return f"the first is nearest to the model; write {other}+{name}"
    if kinds == ("constant", "branch") or (kinds == ("constant", "gate") and following.absorbs):
        return f"{other}'s gate takes the place of {name}'s constant; leave {name} out"
    if kinds == ("branch", "gate"):
        return f"{name} and {other} both put a gate on o_proj and down_proj; keep one"
    return ""
