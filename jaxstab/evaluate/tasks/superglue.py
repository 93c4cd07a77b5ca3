"""SuperGLUE's official JSONL files, `superglue/<Task>/{train,val}.jsonl`, with the fields of the harness's tasks.

The harness calls these functions by their names in the task files beside this one, with the task's metadata.
"""

from __future__ import annotations

import collections
import string
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from lm_eval.utils import general_detokenize

from jaxstab import safe_json
from jaxstab.config import UserError

Document = dict[str, Any]


def _splits(data: str, name: str, read: Callable[[Document], Iterable[Document]]) -> datasets.DatasetDict:
    directory = Path(data) / "superglue" / name
    splits = {"train": "train.jsonl", "validation": "val.jsonl"}
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list(list(_read(directory / file, read))) for split, file in splits.items()}
    )


def _read(path: Path, read: Callable[[Document], Iterable[Document]]) -> Iterator[Document]:
    if not path.is_file():
        raise UserError(f"{path} is missing: SuperGLUE's official file, below the directory that --data names")
    try:
        for line in filter(str.strip, path.read_text("utf-8").splitlines()):
            yield from read(safe_json.loads(line))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} isn't SuperGLUE's official file: {type(error).__name__}: {error}") from error


def boolq(data: str = "", **_: Any) -> datasets.DatasetDict:
    """question, passage, label."""
    return _splits(data, "BoolQ", lambda line: [line | {"label": int(line["label"])}])


def cb(data: str = "", **_: Any) -> datasets.DatasetDict:
    """premise, hypothesis, label."""
    labels = ("entailment", "contradiction", "neutral")
    return _splits(data, "CB", lambda line: [line | {"label": labels.index(line["label"])}])


def copa(data: str = "", **_: Any) -> datasets.DatasetDict:
    """premise, choice1, choice2, question, label."""
    return _splits(data, "COPA", lambda line: [line])


def multirc(data: str = "", **_: Any) -> datasets.DatasetDict:
    """paragraph, question, answer, label: a document for every answer."""

    def answers(line: Document) -> Iterator[Document]:
        for question in line["passage"]["questions"]:
            asked = {"paragraph": line["passage"]["text"], "question": question["question"]}
            for answer in question["answers"]:
                yield asked | {"answer": answer["text"], "label": answer["label"]}

    return _splits(data, "MultiRC", answers)


def record(data: str = "", **_: Any) -> datasets.DatasetDict:
    """passage, query, entities, answers: a document for every query."""

    def queries(line: Document) -> Iterator[Document]:
        text = line["passage"]["text"]
        entities = sorted({text[span["start"] : span["end"] + 1] for span in line["passage"]["entities"]})
        for query in line["qas"]:
            answers = sorted({answer["text"] for answer in query["answers"]})
            yield {"passage": text, "query": query["query"], "entities": entities, "answers": answers}

    return _splits(data, "ReCoRD", queries)


def rte(data: str = "", **_: Any) -> datasets.DatasetDict:
    """premise, hypothesis, label."""
    labels = ("entailment", "not_entailment")
    return _splits(data, "RTE", lambda line: [line | {"label": labels.index(line["label"])}])


def wic(data: str = "", **_: Any) -> datasets.DatasetDict:
    """sentence1, sentence2, start1, end1, label."""
    return _splits(data, "WiC", lambda line: [line | {"label": int(line["label"])}])


def wsc(data: str = "", **_: Any) -> datasets.DatasetDict:
    """text, span1_text, span2_text, span2_index, label, with spans mended as in the hub's `wsc.fixed`."""

    def mended(line: Document) -> Iterator[Document]:
        target = dict(line["target"])
        for span in ("span1", "span2"):
            target[f"{span}_text"] = _in_text(line["text"], target[f"{span}_text"], target[f"{span}_index"])
        yield {"text": line["text"], "label": int(line["label"]), **target}

    return _splits(data, "WSC", mended)


def _in_text(text: str, span: str, index: int) -> str:
    """A span as the text has it, from its word of that index on."""
    if span in text:
        return span
    first = text.split()[index][0]
    cased = (span[0].lower() if first.islower() else span[0].upper()) + span[1:]
    return cased.rstrip(".").replace("\n", " ")


def wsc_prompt(doc: Document) -> str:
    """The passage with the pronoun between asterisks, and the question."""
    before = " ".join(doc["text"].split()[: doc["span2_index"]])
    after = doc["text"][len(before) + len(doc["span2_text"]) + 1 :]
    passage = general_detokenize(f"{before} *{doc['span2_text']}*{after}")
    question = f'does the pronoun "*{doc["span2_text"]}*" refer to "*{doc["span1_text"]}*"?'
    return f"Passage: {passage}\nQuestion: In the passage above, {question}\nAnswer:"


def copa_prompt(doc: Document) -> str:
    """The premise without its full stop, and because or therefore."""
    return f"{doc['premise'].strip()[:-1]} {'because' if doc['question'] == 'cause' else 'therefore'}"


def copa_choices(doc: Document) -> list[str]:
    """Both alternatives, as they go on with the sentence."""
    return [f" {choice[0].lower()}{choice[1:]}" for choice in (doc["choice1"], doc["choice2"])]


def record_prompt(doc: Document) -> str:
    """The passage, its highlights as a list."""
    passage, *highlights = doc["passage"].strip().split("\n@highlight\n")
    return f"{passage}\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)


def record_target(doc: Document) -> str:
    """The query with the first right entity."""
    return f"  - {doc['query']}".replace("@placeholder", doc["answers"][0])


def record_choices(doc: Document) -> list[str]:
    """The query with each entity."""
    return [f"  - {doc['query']}".replace("@placeholder", entity) for entity in doc["entities"]]


def record_results(doc: Document, results: Any) -> dict[str, float]:
    """Exact match and token F1 of the likeliest entity, with the right one that is nearest to it."""
    likeliest = _words(doc["entities"][int(np.argmax([likelihood for likelihood, _ in results]))])
    answers = [_words(answer) for answer in doc["answers"]]
    return {"em": float(likeliest in answers), "f1": max(_overlap(likeliest, answer) for answer in answers)}


def _words(text: str) -> list[str]:
    """The words of an answer that count: without case, punctuation and articles (SQuAD's evaluation)."""
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return [word for word in letters.split() if word not in ("a", "an", "the")]


def _overlap(words: list[str], others: list[str]) -> float:
    """2 x the words in common over all words."""
    common = sum((collections.Counter(words) & collections.Counter(others)).values())
    total = len(words) + len(others)
    return 2 * common / total if total else 1.0


def macro_f1(items: Iterable[tuple[int, int]]) -> float:
    """The mean over the three classes of CB of 2 TP / (2 TP + FP + FN), 0 where a class is never met."""
    golds, predictions = np.array(list(items)).T
    scores = []
    for label in range(3):
        hits = np.sum((golds == label) & (predictions == label))
        total = np.sum(golds == label) + np.sum(predictions == label)
        scores.append(2 * hits / total if total else 0.0)
    return float(np.mean(scores))
