"""WikiText's windows and LAMBADA's last words; tests/parity compares the values with the harness's."""

import json
import math

import numpy as np
import pytest

from jaxstab.config import UserError
from jaxstab.evaluate import opened
from jaxstab.evaluate.lambada import split
from jaxstab.evaluate.results import ratio
from jaxstab.evaluate.scoring import requests_of, score
from jaxstab.evaluate.wikitext import detokenised, pages, windows

PAGES = [
    " = A town = \n \n A town , with a @-@ river ( small ) and a bridge , and more . ",
    " = B = \n \n = = C = = \n \n B 's hill . \n",
]
TEXTS = [" = A town =\n\nA town, with a-river (small) and a bridge, and more. ", " = B =\n\n== C ==\n\nB's hill.\n"]
WORDS = 23 + 14  # a page that begins or ends with a space has an empty word there, as the harness counts
PASSAGES = ["He came home and shut the door", "It was she", "A long passage " * 6 + "ends"]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "lambada").mkdir()
    (tmp_path / "wikitext-2" / "test.txt").write_text("\n" + "\n".join(PAGES))
    lines = "".join(json.dumps({"text": passage}) + "\n" for passage in PASSAGES)
    (tmp_path / "lambada" / "lambada_test.jsonl").write_text(lines)
    return tmp_path


@pytest.mark.parametrize("stride", [8, 5, 1])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 29])
def test_windows_score_every_token_once_with_the_context_that_is_stated(length, stride):
    tokens = list(range(100, 100 + length))
    cut = list(windows(tokens, 0, 8, stride))
    assert [token for _, continuation in cut for token in continuation] == tokens
    whole = [0, *tokens]
    place = 1
    for number, (context, continuation) in enumerate(cut):
        assert context == whole[place - len(context) : place] and context
        assert len(context) + len(continuation) <= 8 + 1
        if number:
            assert len(continuation) <= stride and len(context) >= 8 - stride + 1
        place += len(continuation)


def test_pages_begin_at_their_titles_and_are_detokenised():
    assert pages("\n" + "\n".join(PAGES)) == PAGES
    assert [detokenised(page) for page in PAGES] == TEXTS


def test_wikitext_s_perplexities_are_of_the_same_nats(lm, data):
    values = {result.metric: result.value for result in opened(data, ["wikitext"])["wikitext"](lm, iter)}
    requests = [r for text in TEXTS for r in windows(lm.encode(text), 256, lm.max_length, lm.max_length)]
    nats = -sum(each.log_likelihood for each in score(lm, requests))
    counts = {"word": WORDS, "byte": sum(map(len, PAGES)), "token": sum(map(len, TEXTS))}
    for unit, number in counts.items():
        assert values[f"{unit}_perplexity"] == pytest.approx(math.exp(nats / number), rel=1e-6)
    assert values["bits_per_byte"] == pytest.approx(nats / counts["byte"] / math.log(2), rel=1e-6)


def test_a_shorter_stride_gives_more_context(lm, data):
    by_stride = [opened(data, ["wikitext"], stride)["wikitext"](lm, iter)[0].value for stride in (0, 48, 8)]
    assert by_stride[0] == by_stride[1] != by_stride[2]


def test_lambada_s_perplexity_is_of_words_and_its_accuracy_of_all_their_tokens(lm, data):
    perplexity, accuracy = opened(data, ["lambada"])["lambada"](lm, iter)
    requests = requests_of(lm, [split(passage) for passage in PASSAGES])
    scores = score(lm, requests)
    nats = [-each.log_likelihood for each in scores]
    assert perplexity.value == pytest.approx(math.exp(np.mean(nats)))
    assert perplexity.stderr == pytest.approx(perplexity.value * np.std(nats, ddof=1) / math.sqrt(3))
    assert accuracy.value == np.mean([each.is_greedy for each in scores])
    assert [lm.tokenizer.decode(request.continuation) for request in requests] == [" door", " she", " ends"]


def test_the_standard_error_of_a_ratio_is_that_of_its_bootstrap():
    dice = np.random.default_rng(0)
    weights = dice.uniform(50, 500, 200)
    values = weights * dice.normal(3, 0.5, 200)
    draws = dice.integers(0, 200, (4000, 200))
    bootstrap = (values[draws].sum(1) / weights[draws].sum(1)).std()
    mean, error = ratio(values, weights)
    assert mean == pytest.approx(values.sum() / weights.sum())
    assert error == pytest.approx(bootstrap, rel=0.1)


@pytest.mark.parametrize(
    ("name", "file", "content", "reason"),
    [
        ("wikitext", None, "", "wikitext-2/test.txt is missing"),
        ("lambada", None, "", "lambada_test.jsonl is missing"),
        ("lambada", "lambada/lambada_test.jsonl", "no JSON", "isn't JSON lines with a text each"),
        ("lambda", None, "", "unknown benchmark 'lambda'; did you mean lambada?"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, file, content, reason):
    if file:
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=reason.replace("?", r"\?")):
        opened(tmp_path, [name])
