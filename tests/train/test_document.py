"""The pages that are written from the code are those in docs/."""

from pathlib import Path

from jaxstab.train.document import configuration_page

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_configuration_page_is_up_to_date():
    page = (DOCS / "configuration.md").read_text()
    assert page == configuration_page(), "run: python -m jaxstab.train.document > docs/configuration.md"
