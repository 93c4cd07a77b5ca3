"""What an evaluation shows, and what it survives."""

import json
import types

import pytest

import main
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


@pytest.fixture
def benchmark_files(tmp_path):
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "wikitext-2" / "test.txt").write_text(" = Loss = \n the loss of a layer\n = Norm = \n a norm\n")
    (tmp_path / "lambada").mkdir()
    (tmp_path / "lambada" / "lambada_test.jsonl").write_text('{"text": "the loss of a layer"}\n{"text": "a b"}\n')
    return tmp_path


@pytest.mark.slow
def test_benchmarks_are_measured_at_their_own_cadence(tiny, benchmark_files, tmp_path, capsys):
    """Steps 4 and 8; the sets at 3, 6 and 8. What the run logs at its end is what `evaluate` says of its checkpoint."""
    workdir = tmp_path / "run"
    keys = "benchmarks=wikitext,lambada", f"benchmark_data={benchmark_files}", "benchmark_every=4"
    assert tiny.run(workdir, *(f"--config.eval.{key}" for key in keys)) == 0
    lines = tiny.lines(workdir)
    measured = {name: [line["step"] for line in lines if name in line] for line in lines for name in line}
    assert measured["eval/validation/loss"] == [3, 6, 8]
    assert measured["eval/wikitext/word_perplexity"] == measured["eval/lambada/acc"] == [4, 8]
    logged = {name: value for line in lines if line["step"] == 8 for name, value in line.items()}

    out = tmp_path / "results.json"
    flags = f"--workdir={workdir}", f"--data={benchmark_files}", f"--results={out}"
    assert main.main(["main.py", "evaluate", *flags]) == 0
    for result in json.loads(out.read_text())["results"]:
        assert logged[f"eval/{result['task']}/{result['metric']}"] == pytest.approx(result["value"], rel=1e-4)


def test_benchmarks_that_are_asked_for_afterwards_are_made_up_for(tiny, benchmark_files, tmp_path):
    workdir = tmp_path / "run"
    assert tiny.run(workdir) == 0
    keys = "benchmarks=lambada", f"benchmark_data={benchmark_files}", "benchmark_limit=1"
    for _ in range(2):
        assert tiny.run(workdir, *(f"--config.eval.{key}" for key in keys)) == 0
        assert [line["step"] for line in tiny.lines(workdir) if "eval/lambada/perplexity" in line] == [8]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["benchmarks=wikitext"], "needs eval.benchmark_data"),
        (["benchmarks=wikitext", "benchmark_data={}/none"], "none/wikitext-2/test.txt is missing"),
        (["benchmarks=wiki", "benchmark_data={}"], "did you mean wikitext?"),
        (["benchmarks=lambada", "benchmark_data={}", "texts=lambada={}/*.txt"], "has the name of another set"),
    ],
)
def test_what_is_missing_is_said_before_the_run(tiny, benchmark_files, tmp_path, keys, reason, capsys):
    flags = [f"--config.eval.{key.replace('{}', str(benchmark_files))}" for key in keys]
    assert tiny.run(tmp_path / "run", *flags) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
