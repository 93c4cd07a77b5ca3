"""Spoilt files, in small: what `make soak` does with ten thousand (tests/faults/fuzz.py)."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.fuzz import spoilt, trouble
from tests.faults.readers import READERS

CORPUS = Path(__file__).with_name("corpus")  # what once was trouble: <reader>--<number>
EXAMPLES = 20


@pytest.mark.parametrize("kind", READERS)
def test_a_sound_file_is_read(kind, tmp_path):
    """Or the others would prove little."""
    READERS[kind].put(tmp_path, READERS[kind].content)
    READERS[kind].read(tmp_path)


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_spoilt_file_is_one_line_or_what_is_left_of_it(kind, data):
    whole = READERS[kind].content
    content = data.draw(
        st.one_of(
            st.randoms(use_true_random=False).map(lambda dice: spoilt(whole, dice)),
            st.binary(max_size=200),
        )
    )
    with tempfile.TemporaryDirectory() as directory:
        assert not trouble(READERS[kind], content, Path(directory))


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_once_was_trouble_is_none(path, tmp_path):
    kind = path.name.partition("--")[0].replace("_", " ")
    assert not trouble(READERS[kind], path.read_bytes(), tmp_path, measure=True)
