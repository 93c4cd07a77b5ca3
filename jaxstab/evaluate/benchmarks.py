"""The benchmarks that need no harness: perplexities by its definitions, on local files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxstab.config import ConfigError, unknown
from jaxstab.evaluate import lambada, wikitext
from jaxstab.evaluate.language_model import LanguageModel
from jaxstab.evaluate.results import Result
from jaxstab.evaluate.scoring import Shown

Benchmark = Callable[[LanguageModel, Shown], list[Result]]


def _wikitext(data: Path, stride: int, limit: int) -> Benchmark:
    text = wikitext.read(data)
    return lambda lm, shown: wikitext.wikitext(lm, text, stride, limit, shown)


def _lambada(data: Path, stride: int, limit: int) -> Benchmark:
    passages = lambada.read(data)[: limit or None]
    return lambda lm, shown: lambada.lambada(lm, passages, shown)


BENCHMARKS: dict[str, Callable[[Path, int, int], Benchmark]] = {"wikitext": _wikitext, "lambada": _lambada}


def opened(data: str | Path, names: Sequence[str], stride: int = 0, limit: int = 0) -> dict[str, Benchmark]:
    """Reads benchmarks, so that what is missing is said before anything is computed.

    Args:
      data: the directory with `wikitext-2/` and `lambada/`.
      names: of BENCHMARKS.
      stride: of WikiText's windows; 0 takes the model's `max_length`, as the harness does.
      limit: documents of each, the first ones; 0 takes all.

    Raises:
      UserError: a file isn't there, or a name isn't known.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise ConfigError(unknown(f"benchmark {name!r}", name, BENCHMARKS))
    return {name: BENCHMARKS[name](Path(data).expanduser(), stride, limit) for name in names}
