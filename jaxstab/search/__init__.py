"""Searched initial scales: one file per search, one line here."""

from collections.abc import Callable

from jaxstab.config import method_section
from jaxstab.search.base import Factors, Problem, Search
from jaxstab.search.gradinit import gradinit
from jaxstab.search.metainit import metainit
from jaxstab.search.nio import nio
from jaxstab.search.none import none

SEARCHES: dict[str, Callable[..., Search | None]] = {
    "none": none,
    "metainit": metainit,
    "gradinit": gradinit,
    "nio": nio,
}

SearchConfig = method_section(
    "SearchConfig",
    SEARCHES,
    "none",
    "A search before the first step for a factor of every matrix's initial scale (jaxstab/search).",
)

__all__ = ["SEARCHES", "Factors", "Problem", "Search", "SearchConfig", "gradinit", "metainit", "nio", "none"]
