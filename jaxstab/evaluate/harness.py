"""A model for lm-evaluation-harness (0.4): any task that it knows, and those of `jaxstab/evaluate/tasks`.

`adapter` makes a `LanguageModel` what the harness takes for a model, and `opened` has it measured.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxstab import scale
from jaxstab.config import UserError
from jaxstab.evaluate.generate import generate, padded
from jaxstab.evaluate.language_model import LanguageModel
from jaxstab.evaluate.results import Result
from jaxstab.evaluate.sampling import Sampling
from jaxstab.evaluate.scoring import Request, Shown, requests_of, score
from jaxstab.evaluate.wikitext import windows

TASKS = Path(__file__).with_name("tasks")
TEXTS_AT_ONCE = 16
LONGEST_ANSWER = 256  # tokens of a text where its task gives no number, as in the harness
NUMBER_OF_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # its names, by priority


def adapter(lm: LanguageModel, shown: Callable[[str], Shown] = lambda title: iter) -> Any:
    """The model as a `TemplateLM` of the harness.

    Texts are encoded without special tokens, an empty context is the end token, and a context that is too long for the
    model loses its beginning.

    Args:
      lm: the model.
      shown: of a title, what shows how far a loop is.

    Raises:
      UserError: the harness isn't installed.
    """

    class Adapter(_harness("lm_eval.api.model").TemplateLM):  # type: ignore[misc]
        """`lm`, as the harness asks for it."""

        @property
        def eot_token_id(self) -> int:
            return lm.tokenizer.end

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return lm.encode(string)

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return self._loglikelihood_of(requests_of(lm, [request.args for request in requests]))

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            return self._loglikelihood_of([Request(context, continuation) for _, context, continuation in requests])

        def _loglikelihood_of(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
            cut = sum(len(context) + len(continuation) > lm.max_length + 1 for context, continuation in requests)
            told = f" ({cut:,} of {len(requests):,} prompts lose their beginning)" if cut else ""
            return [(*each,) for each in score(lm, requests, shown(f"likelihoods{told}"))]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            texts = [lm.encode(request.args[0]) for request in requests]
            by_text = [list(windows(ids, lm.tokenizer.end, lm.max_length, lm.max_length)) for ids in texts]
            scores = iter(score(lm, list(itertools.chain(*by_text)), shown("rolling likelihoods")))
            return [sum(next(scores).log_likelihood for _ in of_text) for of_text in by_text]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return generate_until(lm, [request.args for request in requests], shown("texts"))

    return Adapter()


def _harness(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this task needs lm-evaluation-harness: pip install -e .[harness] ({type(error).__name__}: {error})"
        ) from error


class Continuation(NamedTuple):
    """A text that is asked for: its context's tokens, how many are added at most, how they are chosen, and stops."""

    number: int
    context: list[int]
    length: int
    sampling: Sampling
    stops: list[str]

    @property
    def place(self) -> int:
        """Places that the context is padded to."""
        return 1 << (len(self.context) - 1).bit_length()


def generate_until(lm: LanguageModel, asked: Sequence[tuple[str, Mapping[str, Any]]], shown: Shown = iter) -> list[str]:
    """Continues texts up to the first of their stop strings, or to the end of the document.

    Args:
      lm: the model.
      asked: a context and the harness's `generation_kwargs` each. At most half of the model's positions are generated,
        and a context that is too long for the rest loses its beginning.
      shown: shows how far the loop over batches is.
    """
    ordered = sorted((_read(lm, number, *each) for number, each in enumerate(asked)), key=_shape, reverse=True)
    by_shape = (list(of_shape) for _, of_shape in itertools.groupby(ordered, _shape))
    batches = [each[i : i + TEXTS_AT_ONCE] for each in by_shape for i in range(0, len(each), TEXTS_AT_ONCE)]
    texts: dict[int, str] = {}
    for batch in shown(batches):
        for asked_text, tokens in zip(batch, _generated(lm, batch), strict=True):
            texts[asked_text.number] = cut_at(lm.tokenizer.decode(tokens), asked_text.stops)
    return [texts[number] for number in range(len(asked))]


def _read(lm: LanguageModel, number: int, context: str, options: Mapping[str, Any]) -> Continuation:
    given = (options[name] for name in NUMBER_OF_TOKENS if options.get(name) is not None)
    length = min(int(next(given, LONGEST_ANSWER)), lm.max_length // 2)
    temperature = float(options.get("temperature", 0.0))
    if options.get("do_sample", temperature > 0):
        sampling = Sampling(temperature or 1.0, int(options.get("top_k") or 0), float(options.get("top_p") or 1.0))
    else:
        sampling = Sampling()
    stops = options.get("until") or []
    tokens = (lm.encode(context) or [lm.tokenizer.end])[-(lm.max_length - length) :]
    return Continuation(number, tokens, length, sampling, [stops] if isinstance(stops, str) else list(stops))


def _shape(asked: Continuation) -> tuple[Any, ...]:
    return asked.place, asked.length, *vars(asked.sampling).values()


def _generated(lm: LanguageModel, batch: Sequence[Continuation]) -> np.ndarray:
    """The tokens of a batch's texts, `[B, length]`; rows after the batch's own bring it to its shape."""
    first, end = batch[0], lm.tokenizer.end
    rows = [asked.context for asked in batch] + [[end]] * (TEXTS_AT_ONCE - len(batch))
    prompts_BP, lengths_B = padded(rows, multiple=first.place)
    tokens_BN = scale.on_mesh(lm.mesh, generate)(
        lm.model,
        lm.weights,
        prompts_BP,
        lengths_B,
        jax.random.key(first.number),
        first.length,
        first.sampling,
        vocabulary=lm.tokenizer.vocabulary,
        end=end,
        stop=end,
    )
    return np.asarray(tokens_BN)[: len(batch)]


def cut_at(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some strings."""
    for stop in filter(None, stops):
        text = text.split(stop)[0]
    return text


Measure = Callable[[LanguageModel, Callable[[str], Shown]], list[Result]]


def opened(tasks: Sequence[str], data: str | Path = "", fewshot: int | None = None, limit: int = 0) -> Measure:
    """What has the harness measure a model by some tasks, once it is known to know them.

    Args:
      tasks: names of the harness's tasks, groups or tags, or of those in `jaxstab/evaluate/tasks`.
      data: the directory that the latter read.
      fewshot: examples in a prompt; None takes the task's number.
      limit: documents of each task, the first ones; 0 takes all.

    Returns:
      A function of the model, and of what shows how far loops are, that gives every metric of every task, and of groups
      what they aggregate.

    Raises:
      UserError: the harness isn't installed, or knows no such task.
    """
    evaluator, manager = _harness("lm_eval.evaluator"), _task_manager(tasks, data)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    missing = sorted(set(tasks) - set(manager.all_tasks))
    if missing:
        raise UserError(
            f"lm-evaluation-harness knows no task {missing[0]!r}; tasks on local files: {', '.join(_own())}"
        )

    def measure(lm: LanguageModel, shown: Callable[[str], Shown]) -> list[Result]:
        evaluated = evaluator.simple_evaluate(
            model=adapter(lm, shown),
            tasks=list(tasks),
            num_fewshot=fewshot,
            limit=limit or None,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
        )
        return results_of(evaluated["results"])

    return measure


def _own() -> list[str]:
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def _task_manager(tasks: Sequence[str], data: str | Path) -> Any:
    """What finds tasks; the harness's own 14,000 are looked through only where one of them is asked for."""
    return _harness("lm_eval.tasks").TaskManager(
        include_path=str(TASKS), include_defaults=not set(tasks) <= set(_own()), metadata={"data": str(data)}
    )


def results_of(results: Mapping[str, Mapping[str, Any]]) -> list[Result]:
    """The harness's results, without their filters' names where there is none."""
    listed = []
    for task, values in results.items():
        for name, value in values.items():
            metric, comma, filtered = name.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                error = values.get(f"{metric}_stderr,{filtered}")
                label = metric if filtered == "none" else f"{metric}, {filtered}"
                listed.append(
                    Result(task, label, float(value), float(error) if isinstance(error, int | float) else math.nan)
                )
    return listed
