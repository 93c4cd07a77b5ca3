"""The pages that are written from the code are those in docs/, and every method is described and checked."""

from pathlib import Path

import pytest

from jaxstab.train.document import FIELDS, PAGES, REGISTRIES, notes

DOCS = Path(__file__).resolve().parents[2] / "docs"
REGISTERED = [
    (f"{key}={name}", function) for key, (_, registry) in REGISTRIES.items() for name, function in registry.items()
]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date(name):
    assert (DOCS / name).read_text() == PAGES[name](), "run: python -m jaxstab.train.document docs"


@pytest.mark.parametrize(("name", "function"), REGISTERED, ids=[name for name, _ in REGISTERED])
def test_every_method_has_a_formula_a_paper_and_an_independent_check(name, function):
    wanted = ("Formula", "Paper", "Checked against") if name.startswith("optimizer.schedule") else FIELDS
    missing = [field for field in wanted if not notes(function).get(field)]
    assert not missing, f"the docstring of {name} lacks: {', '.join(missing)}"
