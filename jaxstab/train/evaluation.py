"""The evaluations of a run: perplexity of its sets, and samples of text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxstab import data, scale
from jaxstab.config import ConfigError, UserError
from jaxstab.evaluate import Benchmark, LanguageModel, Sampling, evaluate, generate, padded
from jaxstab.logging import RunLogger, each_line
from jaxstab.logging.run import METRICS
from jaxstab.table import Weights
from jaxstab.train.config import VALIDATION, Config
from jaxstab.train.program import Program
from jaxstab.train.state import TrainState

# (effective weights, what is called before each batch) -> results by name
Judge = Callable[[Weights, Callable[[], None]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a run is judged by.

    Attributes:
      program: of the run.
      corpus: its validation split is judged at every evaluation, and its tokenizer decodes samples.
      texts: further sets, by name, that are judged at the end.
      benchmarks: what else is measured, by name, at a cadence of its own.
    """

    program: Program
    corpus: data.Prepared
    texts: Mapping[str, data.PackedSplit]
    benchmarks: Mapping[str, Benchmark] = dataclasses.field(default_factory=dict)

    def due(self, step: int) -> bool:
        """Whether a step is followed by an evaluation."""
        return self._sets_due(step) or self._benchmarks_due(step)

    def _sets_due(self, step: int) -> bool:
        return self._at(step, self.program.setup.config.eval.every)

    def _benchmarks_due(self, step: int) -> bool:
        return bool(self.benchmarks) and self._at(step, self.program.setup.config.eval.benchmark_every)

    def _at(self, step: int, every: int) -> bool:
        return step == self.program.setup.config.total_steps or (every > 0 and step > 0 and step % every == 0)

    def sets(self, step: int) -> dict[str, Judge]:
        """What judges the state after a step, by name; nothing where no evaluation is due."""
        at_end = step == self.program.setup.config.total_steps
        texts = {VALIDATION: self.corpus.validation, **(self.texts if at_end else {})} if self._sets_due(step) else {}
        judges: dict[str, Judge] = {
            name: functools.partial(self._judge_text, split, at_end) for name, split in texts.items() if len(split)
        }
        benchmarks = self.benchmarks if self._benchmarks_due(step) else {}
        return judges | {name: functools.partial(self._measure, each) for name, each in benchmarks.items()}

    def _judge_text(
        self, split: data.PackedSplit, at_end: bool, weights: Weights, between: Callable[[], None]
    ) -> dict[str, float]:
        config = self.program.setup.config
        size, batches = config.train.batch_size, config.eval.final_batches if at_end else config.eval.batches
        local = scale.LocalRows(self.program.setup.mesh, size)
        return evaluate(self.program.evaluate, weights, split, size, batches, between, local)

    def _measure(self, benchmark: Benchmark, weights: Weights, between: Callable[[], None]) -> dict[str, float]:
        def one_by_one(batches: Sequence[Any]) -> Iterator[Any]:
            for batch in batches:
                between()
                yield batch

        setup = self.program.setup
        lm = LanguageModel(setup.mesh, setup.model.clone(intermediates=()), weights, self.corpus.tokenizer)
        return {result.metric: result.value for result in benchmark(lm, one_by_one)}

    def unjudged(self, workdir: Path, step: int, attempt: int) -> dict[str, Judge]:
        """The sets that a step's evaluation hasn't judged: a step is saved first, and a run may end in its evaluation.

        Args:
          workdir: its metrics tell.
          step: of the checkpoint that the run goes on from.
          attempt: of the run.
        """
        sets = self.sets(step)
        try:
            lines = list(each_line(workdir / METRICS, step - 1)) if sets else []
        except (UserError, OSError):  # what isn't on record is done again
            lines = []
        known = {key for line in lines if (line["step"], line["attempt"]) == (step, attempt) for key in line}
        judged = {key.rpartition("/")[0] for key in known}
        return {name: judge for name, judge in sets.items() if f"eval/{name}" not in judged}

    def run(
        self,
        step: int,
        state: TrainState,
        sets: Mapping[str, Judge],
        logger: RunLogger,
        between: Callable[[], None],
    ) -> None:
        """Judges the state after a step.

        Args:
          step: of the state.
          state: what is judged.
          sets: what it is judged by; see `sets`.
          logger: takes the results.
          between: called before each batch; what it raises ends the evaluation.
        """
        weights = self.program.merge(state)
        for name, judge in sets.items():
            logger.eval(step, {f"eval/{name}/{key}": value for key, value in judge(weights, between).items()})
        if self.program.setup.config.eval.sample_length:
            between()
            self._show_sample(step, weights, logger)

    def _show_sample(self, step: int, weights: Any, logger: RunLogger) -> None:
        try:
            logger.text(step, "sample", self._sample(step, weights))
        except Exception as error:  # a sample is there to be read; no run ends for lack of one
            logger.notice(f"step {step}: there is no sample ({type(error).__name__}: {error})")

    def _sample(self, step: int, weights: Any) -> str:
        config, tokenizer = self.program.setup.config, self.corpus.tokenizer
        prompt = prompt_of(config, tokenizer)
        (tokens,) = scale.on_mesh(self.program.setup.mesh, generate)(
            self.program.setup.model,
            weights,
            *padded([prompt]),
            jax.random.fold_in(jax.random.key(config.train.seed), step),
            min(config.eval.sample_length, config.model.max_length - len(prompt)),
            Sampling(config.eval.temperature),
            vocabulary=tokenizer.vocabulary,
            end=tokenizer.end,
        )
        return tokenizer.decode([*prompt[1:], *scale.fetch(tokens)])


def prepare_texts(config: Config) -> dict[str, data.PackedSplit]:
    """The text sets of `eval.texts`, by name."""
    texts = {}
    for text in config.eval.texts:
        name, _, files = text.partition("=")
        source = dataclasses.replace(config.data, source="text", files=(files,), validation_fraction=1.0, max_tokens=0)
        texts[name] = data.prepare(source).validation
    return texts


def prompt_of(config: Config, tokenizer: data.Tokenizer) -> np.ndarray:
    """What a sample begins with: an end token, which begins a document, and the config's prompt; int32."""
    (encoded,) = tokenizer.encode([config.eval.sample_prompt])
    return np.concatenate([[tokenizer.end], encoded]).astype(np.int32)


def check_prompt(config: Config, tokenizer: data.Tokenizer) -> None:
    """Raises ConfigError where the prompt leaves no room for a sample."""
    length = len(prompt_of(config, tokenizer))
    if config.eval.sample_length and length >= config.model.max_length:
        raise ConfigError(
            f"eval.sample_prompt of {length} tokens, with the one that begins a document, leaves no room in "
            f"model.max_length={config.model.max_length}; shorten it"
        )
