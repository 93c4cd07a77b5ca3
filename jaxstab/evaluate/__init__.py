"""Judging a model: perplexity and samples."""

from jaxstab.evaluate.generate import generate, padded
from jaxstab.evaluate.perplexity import evaluate
from jaxstab.evaluate.sampling import Sampling

__all__ = ["Sampling", "evaluate", "generate", "padded"]
