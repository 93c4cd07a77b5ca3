"""The runs of tests/train, hurt from outside."""

from tests.train.conftest import shared_programs, tiny, unbroken

__all__ = ["shared_programs", "tiny", "unbroken"]
