"""Judging a model: perplexity and samples."""

from jaxstab.evaluate.generate import generate
from jaxstab.evaluate.perplexity import evaluate

__all__ = ["evaluate", "generate"]
