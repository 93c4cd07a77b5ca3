"""What an evaluation shows, and what it survives."""

import types

import pytest

from jaxstab.data import load_tokenizer
from jaxstab.train.config import default_config, resolve
from jaxstab.train.evaluation import Evaluation
from jaxstab.train.program import build


class Strict:
    """The bytes tokenizer; as SentencePiece, it raises where an id is beyond its vocabulary."""

    vocabulary, end = 257, 256
    encode = staticmethod(load_tokenizer("bytes", "").encode)

    def decode(self, ids):
        if max(ids) >= self.vocabulary:
            raise IndexError("piece id is out of range.")
        return load_tokenizer("bytes", "").decode(ids)


class Broken(Strict):
    def decode(self, ids):
        raise RuntimeError("no text")


class Logger:
    """What `Evaluation` asks of one."""

    def __init__(self):
        self.texts, self.notices = [], []

    def text(self, step, name, text):
        self.texts.append((step, name, text))

    def notice(self, line):
        self.notices.append(line)


@pytest.fixture(scope="module")
def program():
    """A model whose vocabulary is padded to four times that of its tokenizer, and which stays inside documents."""
    config = default_config()
    config.model.update(width=8, layers=1, heads=2, vocabulary=1028, max_length=48, mask_documents=True)
    config.data.length = 16
    config.train.batch_size = 2
    config.eval.update(sample_length=40, temperature=1.0)
    return build(resolve(config), Strict.end)


def show(program, tokenizer):
    logger = Logger()
    corpus = types.SimpleNamespace(tokenizer=tokenizer, validation=[])
    Evaluation(program, corpus, {}).run(7, program.init(0), {}, logger, lambda: None)
    return logger


def test_samples_of_a_padded_vocabulary_have_a_text(program):
    logger = show(program, Strict())
    ((step, name, text),) = logger.texts
    assert (step, name) == (7, "sample") and text and not logger.notices


def test_a_sample_that_cannot_be_decoded_is_a_notice(program):
    logger = show(program, Broken())
    assert not logger.texts and logger.notices == ["step 7: there is no sample (RuntimeError: no text)"]
