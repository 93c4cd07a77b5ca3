"""What docs/add_a_*.md say is true: a page's code can be registered, and passes the test that the page gives it."""

import importlib
import inspect
import re
import sys
import types
from pathlib import Path

import pytest

from jaxstab.config import declared, method_section
from jaxstab.optimize import PROJECTIONS
from jaxstab.reparam import METHODS
from jaxstab.train.document import FIELDS, notes

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    "add_a_method.md": ("jaxstab.reparam", METHODS),
    "add_a_projection.md": ("jaxstab.optimize.chain", PROJECTIONS),
}


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_and_passes_its_test(page, monkeypatch):
    text = (DOCS / page).read_text()
    path = re.search(r"`(jaxstab/\S+)\.py`, whole:", text)[1]
    file, registration, test = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    where, registry = PAGES[page]
    name = Path(path).name

    module = types.ModuleType(path.replace("/", "."))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(file, path, "exec"), vars(module))
    function = getattr(module, name)

    imported, entry = registration.split("\n\n")
    home = importlib.import_module(where)
    assert imported.strip() == f"from {module.__name__} import {name}"
    monkeypatch.setattr(home, name, function, raising=False)
    assert eval(f"{{{entry}}}", vars(home)) == {name: function}
    monkeypatch.setitem(registry, name, function)

    options = {key for key, *_ in declared(method_section("Page", registry, name, "What a page adds."))}
    assert {f"{name}.{parameter}" for parameter in inspect.signature(function).parameters} <= options
    assert set(notes(function)) == set(FIELDS)

    checks = {}
    exec(compile(test, page, "exec"), checks)
    tests = [value for key, value in checks.items() if key.startswith("test_")]
    assert tests
    for each in tests:
        each()
