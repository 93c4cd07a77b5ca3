"""No history ends in a traceback or a warning, whatever is in it."""

import collections
import warnings

import pytest

from jaxstab.diagnose.causes import CAUSES
from jaxstab.diagnose.diagnosis import diagnosed
from jaxstab.diagnose.figures import figures
from jaxstab.diagnose.page import page
from jaxstab.diagnose.report import as_json
from jaxstab.diagnose.sections import as_text, sections
from tests.diagnose.fuzz import random_history

HISTORIES = 200


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.slow
def test_random_histories_are_diagnosed():
    causes = collections.Counter()
    for seed in range(HISTORIES):
        diagnosis = diagnosed(random_history(seed))
        as_json(diagnosis)
        said, written = as_text(sections(diagnosis)), page("Odd", "", sections(diagnosis), [])
        assert said and written.count("<h2") == len(sections(diagnosis)), seed
        assert diagnosis.cause.cause != "none" or not diagnosis.advice, seed
        causes.update(cause.cause for cause in diagnosis.causes)
    assert set(CAUSES) - set(causes) == set()  # otherwise the histories are too much alike


def test_a_random_history_is_drawn():
    history = random_history(1000)
    assert any(figure.svg for figure in figures(history, [3]))
