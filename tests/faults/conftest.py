"""The runs of tests/train, hurt from outside."""

import pytest

from tests.train.conftest import TinyRuns


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    return TinyRuns(tmp_path_factory.mktemp("corpus"))
