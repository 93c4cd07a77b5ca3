"""Judging a model: perplexities, benchmarks and samples."""

from jaxstab.evaluate.benchmarks import BENCHMARKS, Benchmark, opened
from jaxstab.evaluate.generate import generate, padded
from jaxstab.evaluate.language_model import LanguageModel
from jaxstab.evaluate.perplexity import evaluate
from jaxstab.evaluate.results import Result
from jaxstab.evaluate.sampling import Sampling
from jaxstab.evaluate.texts import continued

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "LanguageModel",
    "Result",
    "Sampling",
    "continued",
    "evaluate",
    "generate",
    "opened",
    "padded",
]
